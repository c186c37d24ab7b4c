// Deformable convolution v1 and v2: parameters, the CUDA launcher, the CPU front.
#pragma once

#include "common/types.h"

namespace upsnet::deform_conv {

struct Params {
  const void* input;    // [batch, channels, height, width]
  const float* offset;  // [batch, offset_groups * 2 * kernel_h * kernel_w, out_height, out_width], (dy, dx) a tap, NCHW
  const float* mask;    // [batch, offset_groups * kernel_h * kernel_w, out_height, out_width], NCHW; null: v1
  const void* weight;   // [out_channels, channels / groups, kernel_h, kernel_w], type of the input
  const float* bias;    // [out_channels] or null
  void* output;         // [batch, out_channels, out_height, out_width], type and layout of the input
  DType type;
  Layout layout;
  int32_t batch;
  int32_t channels;
  int32_t height;
  int32_t width;
  int32_t out_channels;
  int32_t out_height;
  int32_t out_width;
  int32_t kernel_h;
  int32_t kernel_w;
  int32_t stride_h;
  int32_t stride_w;
  int32_t pad_h;  // at the top; the output size already says what is at the bottom
  int32_t pad_w;
  int32_t dilation_h;
  int32_t dilation_w;
  int32_t groups;
  int32_t offset_groups;
};

size_t workspace_size(const Params& params);  // bytes of device memory, aligned to kAlignment
int launch(const Params& params, void* workspace, CUstream_st* stream);  // a cudaError_t
int run_cpu(const Params& params, int threads);                          // pointers to host memory; 0

}  // namespace upsnet::deform_conv
