// UPSNet's panoptic head: parameters, the CUDA launcher, the CPU front.
#pragma once

#include "common/types.h"

namespace upsnet::panoptic_fusion {

struct Params {
  const void* semantic;     // [batch, num_stuff + num_things, height, width] logits at a quarter of the resolution
  const float* boxes;       // [batch, detections, 4] x1 y1 x2 y2 in network pixels, inclusive corners
  const int64_t* classes;   // [batch, detections] thing index 0 .. num_things - 1
  const float* scores;      // [batch, detections] descending
  const void* mask_logits;  // [batch, detections, mask_size, mask_size]
  const int32_t* counts;    // [batch] valid detections
  const int32_t* sizes;     // [batch, 2] height and width inside the padding
  const float* scales;      // [batch] network pixels for one original pixel
  uint8_t* panoptic;        // [batch, 4 height, 4 width] out: 0 void, else 1 + row of segments
  float* segments;          // [batch, num_stuff + detections, 7] out
  int32_t* segment_count;   // [batch] out
  DType semantic_type;
  Layout semantic_layout;
  DType mask_type;
  int32_t batch;
  int32_t num_stuff;
  int32_t num_things;
  int32_t height;  // of the semantic logits
  int32_t width;
  int32_t detections;
  int32_t mask_size;
  float stuff_area_limit;  // original pixels
  float mask_overlap_threshold;
};

size_t workspace_size(const Params& params);  // bytes of device memory, aligned to kAlignment
int launch(const Params& params, void* workspace, CUstream_st* stream);  // a cudaError_t
int run_cpu(const Params& params, int threads);                          // pointers to host memory; 0

}  // namespace upsnet::panoptic_fusion
