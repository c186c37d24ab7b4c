// The node BestAnchors.
#pragma once

#include "best_anchors/declared.h"

namespace upsnet::best_anchors {

struct BestAnchorsNode : Declared {};

}  // namespace upsnet::best_anchors
