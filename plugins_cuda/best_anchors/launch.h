// The best anchors of each level: the CPU front. params.h is made from schema.py.
#pragma once

#include "best_anchors/params.h"
#include "common/pool.h"

namespace upsnet::best_anchors {

constexpr int kLevels = 5;

int run_cpu(const Params& params, const Pool& pool);  // pointers to host memory; 0, or why not

}  // namespace upsnet::best_anchors
