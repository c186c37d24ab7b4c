#include "common/exports.h"
#include "roi_align_fpn/launch.h"

namespace upsnet::roi_align_fpn {

int run_cpu(const Params&, int) { return 1; }

}  // namespace upsnet::roi_align_fpn

UPSNET_EXPORT_CPU(roi_align_fpn)
