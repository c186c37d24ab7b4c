#include "common/exports.h"
#include "common/pool.h"
#include "deform_conv/backward/launch.h"

namespace upsnet::deform_conv_backward {

int run_cpu(const Params&, const Pool&) { return 1; }

}  // namespace upsnet::deform_conv_backward

UPSNET_CPU_FRONT(deform_conv_backward)
