#include "common/exports.h"
#include "deform_conv/launch.h"

namespace upsnet::deform_conv {

int run_cpu(const Params&, int) { return 1; }

}  // namespace upsnet::deform_conv

UPSNET_EXPORT_CPU(deform_conv)
