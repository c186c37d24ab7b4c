// The nodes PaddedNms and PaddedBatchedNms.
#pragma once

#include "nms/declared.h"

namespace upsnet::nms {

struct NmsNode : Declared {
  void check() const {
    Declared::check();
    require(max_output <= kMost, "attribute max_output must be at most 2^30");
  }
};

}  // namespace upsnet::nms
