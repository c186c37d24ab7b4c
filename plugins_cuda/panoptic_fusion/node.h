// The node PanopticFusion.
#pragma once

#include "panoptic_fusion/declared.h"

namespace upsnet::panoptic_fusion {

struct PanopticFusionNode : Declared {
  void check_sizes(const Shape* in, int32_t) const {
    const Shape &semantic = in[0], &boxes = in[1];
    require(semantic.d[1] >= num_stuff, "semantic has fewer channels than num_stuff");
    require(num_stuff + boxes.d[1] <= 255, "num_stuff and the detections do not fit a uint8 map (255)");
  }
};

}  // namespace upsnet::panoptic_fusion
