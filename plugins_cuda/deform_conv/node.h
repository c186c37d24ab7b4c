// The nodes DeformConv2d and ModulatedDeformConv2d.
#pragma once

#include "deform_conv/declared.h"

namespace upsnet::deform_conv {

struct DeformConvNode : Declared {
  enum Input : int32_t { kX, kOffset, kWeight, kBias, kMask };

  void check_sizes(const Shape* in, int32_t count) const {
    const Shape &x = in[kX], &offset = in[kOffset], &weight = in[kWeight];
    const int64_t taps = weight.d[2] * weight.d[3];
    require(x.d[1] >= 1 && taps >= 1, "x has no channels, or the kernel has no taps");
    require(x.d[1] == weight.d[1] * group, "x's channels are not weight's channels times group");
    require(weight.d[0] % group == 0, "weight's output channels do not divide into group");
    require(x.d[1] % offset_group == 0, "x's channels do not divide into offset_group");
    require(offset.d[1] == 2 * offset_group * taps, "offset's channels are not 2 * offset_group * kernel size");
    for (int32_t axis = 0; axis < 2; ++axis) {
      const int64_t reach = int64_t{dilations[axis]} * (weight.d[2 + axis] - 1) + 1;
      const int64_t room_left = x.d[2 + axis] + pads[axis] + pads[2 + axis] - reach;
      require(room_left >= 0, "the kernel is larger than the padded x");
      require(offset.d[2 + axis] == room_left / strides[axis] + 1, "offset's height and width are not the output's");
    }
    require(count <= kMask || in[kMask].d[1] == offset_group * taps,
            "mask's channels are not offset_group * kernel size");
  }
};

}  // namespace upsnet::deform_conv
