// params.h is made from schema.py.
#pragma once

#include "deform_conv/columns/params.h"

namespace upsnet::deform_conv_columns {

// See roi_align_fpn/launch.h: bytes of device memory, and a cudaError_t.
size_t workspace_size(const Params& params);
int launch(const Params& params, void* workspace, size_t bytes, CUstream_st* stream);

}  // namespace upsnet::deform_conv_columns
