#include "common/exports.h"
#include "common/pool.h"
#include "roi_align_fpn/backward/launch.h"

namespace upsnet::roi_align_fpn_backward {

int run_cpu(const Params&, const Pool&) { return 1; }

}  // namespace upsnet::roi_align_fpn_backward

UPSNET_CPU_FRONT(roi_align_fpn_backward)
