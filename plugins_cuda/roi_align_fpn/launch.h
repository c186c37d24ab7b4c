// RoIAlign over P2..P5: parameters, the CUDA launcher, the CPU front.
#pragma once

#include "common/types.h"

namespace upsnet::roi_align_fpn {

constexpr int kLevels = 4;
constexpr int kMaxSamples = 1024;  // output_size * sampling_ratio: the samples of a box in one direction

struct Params {
  const void* features[kLevels];  // [batch, channels, heights[l], widths[l]] of stride 4 << l
  const float* rois;              // [batch, rois_per_image, 4] x1 y1 x2 y2 in network pixels
  void* output;                   // [batch, rois_per_image, channels, output_size, output_size], type of the features
  int32_t heights[kLevels];
  int32_t widths[kLevels];
  DType type;
  Layout layout;  // of the features; the output is always contiguous
  int32_t batch;
  int32_t channels;
  int32_t rois_per_image;
  int32_t output_size;
  int32_t sampling_ratio;  // samples a bin in each direction, >= 1
  int32_t is_aligned;      // 1: shift by half a pixel; 0: legacy, boxes of at least one pixel of the map
  int32_t inclusive;       // 1: the level rule takes widths and heights with + 1
  float canonical_size;    // side of the smallest square box on P4, network pixels
};

size_t workspace_size(const Params& params);  // bytes of device memory, aligned to kAlignment
int launch(const Params& params, void* workspace, CUstream_st* stream);  // a cudaError_t
int run_cpu(const Params& params, int threads);                          // pointers to host memory; 0

}  // namespace upsnet::roi_align_fpn
