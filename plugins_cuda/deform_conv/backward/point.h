// Where a tap of a deformable convolution samples, as its gradient wants it; for GPU and CPU, in float or double.
#pragma once

#include "deform_conv/kernel.cuh"

namespace upsnet::deform_conv {

// The numbers of a deformable convolution whose gradient Params asks for, in the forward's own words (kernel.cuh).
template <typename Gradient>
Params geometry_of(const Gradient& p, int32_t out_channels, int32_t group, int32_t kernel_h, int32_t kernel_w) {
  Params same{};
  same.batch = p.batch, same.channels = p.channels, same.height = p.height, same.width = p.width;
  same.out_channels = out_channels, same.out_height = p.out_height, same.out_width = p.out_width;
  same.kernel_h = kernel_h, same.kernel_w = kernel_w;
  for (int i = 0; i < 2; ++i) {
    same.stride[i] = p.stride[i], same.padding[i] = p.padding[i], same.dilation[i] = p.dilation[i];
  }
  same.group = group, same.offset_group = p.offset_group;
  return same;
}

// sample_at (kernel.cuh) before its weights: the way from the top left corner. Corners off the map have pixel -1. A
// point at -1 samples zero, and has the slope of the points behind it: an untrained layer's taps lie there.
template <typename S>
struct Point {
  int32_t pixel[4];
  S down, right;
};

template <typename S>
UPSNET_HD Point<S> point_at(S y, S x, int32_t height, int32_t width) {
  const bool inside = y >= S(-1) && y < S(height) && x >= S(-1) && x < S(width);
  const S floor_y = inside ? floor(y) : S(0), floor_x = inside ? floor(x) : S(0);
  const int32_t row = int32_t(floor_y), column = int32_t(floor_x), first = row * width + column;
  const bool above = inside && row >= 0, below = inside && row + 1 < height;
  const bool before = column >= 0, after = column + 1 < width;
  Point<S> point;
  point.pixel[0] = above && before ? first : -1;
  point.pixel[1] = above && after ? first + 1 : -1;
  point.pixel[2] = below && before ? first + width : -1;
  point.pixel[3] = below && after ? first + width + 1 : -1;
  point.down = inside ? y - floor_y : S(0);
  point.right = inside ? x - floor_x : S(0);
  return point;
}

// Of one sample: the sums over its channels of the gradient times the differences of the corners, and of the gradient
// times the top left corner. Differences before sums: features far from zero lose no digits of an offset's gradient.
template <typename S>
struct Moments {
  S top, bottom, left, corner;  // along the top row, along the bottom row, down the left column; the corner itself

  UPSNET_HD S down(S right) const { return left + right * (bottom - top); }
  UPSNET_HD S right(S down) const { return top + down * (bottom - top); }
  UPSNET_HD S sample(S down, S right) const { return corner + right * top + down * this->down(right); }
};

}  // namespace upsnet::deform_conv
