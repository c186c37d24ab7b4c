#include "common/cuda.h"
#include "common/exports.h"
#include "roi_align_fpn/launch.h"

namespace upsnet::roi_align_fpn {

size_t workspace_size(const Params&) { return 0; }

int launch(const Params&, void*, CUstream_st*) { return cudaErrorInvalidValue; }

}  // namespace upsnet::roi_align_fpn

UPSNET_EXPORT_CUDA(roi_align_fpn)
