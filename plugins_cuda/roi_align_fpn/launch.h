// RoIAlign over P2..P5: the CUDA launcher and the CPU front. params.h is made from schema.py.
#pragma once

#include "roi_align_fpn/params.h"

namespace upsnet::roi_align_fpn {

constexpr int kLevels = 4;
constexpr int kMaxSamples = 1024;  // output_size * sampling_ratio: the samples of a box in one direction, not counted

// Bytes of device memory, a multiple of kAlignment. It never shrinks when a size of the inputs grows: TensorRT asks
// once, for its largest shapes, and runs smaller ones in that.
size_t workspace_size(const Params& params);
// A cudaError_t: cudaErrorInvalidValue where `bytes`, the workspace's size, is less than workspace_size(params), and
// for parameters that no front supports (kernel.cuh); cudaErrorMisalignedAddress.
int launch(const Params& params, void* workspace, size_t bytes, CUstream_st* stream);
// With pointers to host memory: 0, 1 for parameters that no front supports, 2 where memory is wanting.
int run_cpu(const Params& params, const Pool& pool);

}  // namespace upsnet::roi_align_fpn
