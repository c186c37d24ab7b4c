// Padded NMS: parameters, the CUDA launcher, the CPU front.
#pragma once

#include "common/types.h"

namespace upsnet::nms {

struct Params {
  const float* boxes;      // [batch, num_boxes, 4] x1 y1 x2 y2
  const float* scores;     // [batch, num_boxes]
  const int64_t* classes;  // [batch, num_boxes]: only boxes of the same class suppress; null: class-agnostic
  int64_t* indices;        // [batch, max_output] out: kept boxes, score descending (ties: lower index), padded with 0
  int32_t* counts;         // [batch] out
  int32_t batch;
  int32_t num_boxes;
  int32_t max_output;
  int32_t top_k;          // only the top_k best candidates compete; 0: all
  int32_t inclusive;      // 1: legacy convention, widths and heights with + 1
  float iou_threshold;    // suppressed when IoU > iou_threshold
  float score_threshold;  // a candidate when score > score_threshold; NaN never is
};

size_t workspace_size(const Params& params);  // bytes of device memory, aligned to kAlignment
int launch(const Params& params, void* workspace, CUstream_st* stream);  // a cudaError_t
int run_cpu(const Params& params, int threads);                          // pointers to host memory; 0

}  // namespace upsnet::nms
