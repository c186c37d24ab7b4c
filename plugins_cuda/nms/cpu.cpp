#include "common/exports.h"
#include "nms/launch.h"

namespace upsnet::nms {

int run_cpu(const Params&, int) { return 1; }

}  // namespace upsnet::nms

UPSNET_EXPORT_CPU(nms)
