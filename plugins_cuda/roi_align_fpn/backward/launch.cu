#include "common/cuda.h"
#include "common/exports.h"
#include "roi_align_fpn/backward/launch.h"

namespace upsnet::roi_align_fpn_backward {

size_t workspace_size(const Params&) { return 0; }
int launch(const Params&, void*, size_t, CUstream_st*) { return cudaErrorInvalidValue; }

}  // namespace upsnet::roi_align_fpn_backward

UPSNET_EXPORT_CUDA(roi_align_fpn_backward)
