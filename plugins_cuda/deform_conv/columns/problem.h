// What the kernels between the matrix products share: one launch's numbers, and where a tap of a pixel samples.
#pragma once

#include "common/cuda.h"
#include "deform_conv/backward/point.h"
#include "deform_conv/columns/launch.h"

namespace upsnet::deform_conv_columns {

using deform_conv::Moments;
using deform_conv::Point;

constexpr int kThreads = 256;

struct Problem {
  Params p;
  const void* features;  // NHWC
  void* sums;            // [B, H, W, C] of the sums' type: the gradient of the features; null: somebody else's
  int32_t lanes;         // of a team (columns_kernel): a power of two, 4 to 32
};

UPSNET_HD int64_t out_plane(const Params& p) { return int64_t(p.out_height) * p.out_width; }
UPSNET_HD int64_t map_of(const Params& p) { return int64_t(p.height) * p.width; }

// Of tap `index` (offset group, tap) of image `image`.
template <typename S>
UPSNET_HD Point<S> point_of(const Params& p, int64_t image, int32_t index, int32_t pixel) {
  const int64_t plane = out_plane(p), place = image * p.offset_group * p.taps + index;
  const S* shift = static_cast<const S*>(p.offset) + 2 * place * plane + pixel;
  const int32_t tap = index % p.taps, row = pixel / p.out_width, column = pixel % p.out_width;
  const int32_t top = row * p.stride[0] - p.padding[0] + tap / p.kernel_size[1] * p.dilation[0];
  const int32_t left = column * p.stride[1] - p.padding[1] + tap % p.kernel_size[1] * p.dilation[1];
  return deform_conv::point_at(S(top) + shift[0], S(left) + shift[plane], p.height, p.width);
}

template <typename S>
UPSNET_HD S mask_of(const Params& p, int64_t image, int32_t index, int32_t pixel) {
  const int64_t place = image * p.offset_group * p.taps + index;
  return p.mask ? static_cast<const S*>(p.mask)[place * out_plane(p) + pixel] : S(1);
}

// What the corners weigh, times the mask.
template <typename S>
UPSNET_HD void weights_of(const Point<S>& point, S mask, S (&weight)[4]) {
  const S below = point.down * mask, above = mask - below;
  weight[1] = above * point.right, weight[0] = above - weight[1];
  weight[3] = below * point.right, weight[2] = below - weight[3];
}

}  // namespace upsnet::deform_conv_columns
