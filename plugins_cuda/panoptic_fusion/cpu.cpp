#include "common/exports.h"
#include "panoptic_fusion/launch.h"

namespace upsnet::panoptic_fusion {

int run_cpu(const Params&, int) { return 1; }

}  // namespace upsnet::panoptic_fusion

UPSNET_EXPORT_CPU(panoptic_fusion)
