// The node RoiAlignFpn.
#pragma once

#include <algorithm>

#include "roi_align_fpn/declared.h"

namespace upsnet::roi_align_fpn {

struct RoiAlignFpnNode : Declared {
  void check() const {
    Declared::check();
    require(int64_t{output_size} * std::max(sampling_ratio, 1) <= kMaxSamples,
            "attributes output_size and sampling_ratio must multiply to at most 1024");
  }
};

}  // namespace upsnet::roi_align_fpn
