#include "common/cuda.h"
#include "common/exports.h"
#include "deform_conv/launch.h"

namespace upsnet::deform_conv {

size_t workspace_size(const Params&) { return 0; }

int launch(const Params&, void*, CUstream_st*) { return cudaErrorInvalidValue; }

}  // namespace upsnet::deform_conv

UPSNET_EXPORT_CUDA(deform_conv)
