// Where the steps begin: both fronts, for PyTorch and TensorRT.
// UPSNet's panoptic head: the CUDA launcher and the CPU front. params.h is made from schema.py.
#pragma once

#include "panoptic_fusion/params.h"

namespace upsnet::panoptic_fusion {

size_t workspace_size(const Params& params);  // bytes of device memory, aligned to kAlignment
int launch(const Params& params, void* workspace, CUstream_st* stream);  // a cudaError_t
int run_cpu(const Params& params, int threads);                          // pointers to host memory; 0

}  // namespace upsnet::panoptic_fusion
