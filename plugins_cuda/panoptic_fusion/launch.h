// Where the steps begin: both fronts, for PyTorch and TensorRT.
// UPSNet's panoptic head: the CUDA launcher and the CPU front. params.h is made from schema.py.
#pragma once

#include "panoptic_fusion/params.h"

namespace upsnet::panoptic_fusion {

size_t workspace_size(const Params& params);  // bytes of device memory, aligned to kAlignment
// A cudaError_t; cudaErrorInvalidValue where `bytes`, the workspace's size, is less than workspace_size(params).
int launch(const Params& params, void* workspace, size_t bytes, CUstream_st* stream);
int run_cpu(const Params& params, int threads);  // pointers to host memory; 0

}  // namespace upsnet::panoptic_fusion
