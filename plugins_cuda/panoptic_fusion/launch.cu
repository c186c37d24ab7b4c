#include "common/cuda.h"
#include "common/exports.h"
#include "panoptic_fusion/launch.h"

namespace upsnet::panoptic_fusion {

size_t workspace_size(const Params&) { return 0; }

int launch(const Params&, void*, CUstream_st*) { return cudaErrorInvalidValue; }

}  // namespace upsnet::panoptic_fusion

UPSNET_EXPORT_CUDA(panoptic_fusion)
