#include "common/cuda.h"
#include "common/exports.h"
#include "nms/launch.h"

namespace upsnet::nms {

size_t workspace_size(const Params&) { return 0; }

int launch(const Params&, void*, CUstream_st*) { return cudaErrorInvalidValue; }

}  // namespace upsnet::nms

UPSNET_EXPORT_CUDA(nms)
