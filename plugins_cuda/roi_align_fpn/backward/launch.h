// params.h is made from schema.py.
#pragma once

#include "roi_align_fpn/backward/params.h"

namespace upsnet::roi_align_fpn_backward {

// See roi_align_fpn/launch.h: bytes of device memory, and a cudaError_t.
size_t workspace_size(const Params& params);
int launch(const Params& params, void* workspace, size_t bytes, CUstream_st* stream);
// With pointers to host memory: 0, 1 for parameters that it does not support, 2 where memory is wanting.
int run_cpu(const Params& params, const Pool& pool);

}  // namespace upsnet::roi_align_fpn_backward
