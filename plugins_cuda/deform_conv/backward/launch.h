// params.h is made from schema.py.
#pragma once

#include "deform_conv/backward/params.h"

namespace upsnet::deform_conv_backward {

// With pointers to host memory: 0, 1 for parameters that it does not support, 2 where memory is wanting.
int run_cpu(const Params& params, const Pool& pool);

}  // namespace upsnet::deform_conv_backward
