#include "common/cuda.h"
#include "common/exports.h"
#include "deform_conv/columns/launch.h"

namespace upsnet::deform_conv_columns {

size_t workspace_size(const Params&) { return 0; }
int launch(const Params&, void*, size_t, CUstream_st*) { return cudaErrorInvalidValue; }

}  // namespace upsnet::deform_conv_columns

UPSNET_EXPORT_CUDA(deform_conv_columns)
