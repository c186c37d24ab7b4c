// Deformable convolution's arithmetic: where a tap samples, with which weights, and the blend of the four corners.
#pragma once

#include <cmath>
#include <numeric>

#include "common/numeric.h"
#include "deform_conv/launch.h"

namespace upsnet::deform_conv {

// Channels divide into groups, and a kernel has taps: without that nothing has a size.
inline bool has_groups(const Params& p) {
  const auto divides = [](int32_t part, int32_t whole) { return part >= 1 && whole % part == 0; };
  return p.channels >= 1 && p.out_channels >= 0 && p.kernel_h >= 1 && p.kernel_w >= 1 && divides(p.group, p.channels) &&
         divides(p.group, p.out_channels) && divides(p.offset_group, p.channels);
}

// Why no front can run it, null where all can; the bindings explain what they refuse. Pixels of a map, places of taps
// on it and the depth of the matrix product are 32-bit numbers, with room for one tile more.
inline const char* unsupported(const Params& p) {
  const auto fits = [](int64_t value) { return value <= INT32_MAX - 128; };
  const auto reaches = [&](int32_t size, int32_t stride, int32_t kernel, int32_t dilation) {
    return fits(int64_t{size} * stride + int64_t{kernel} * dilation);
  };
  const int64_t taps = int64_t{p.kernel_h} * p.kernel_w;
  if (!has_groups(p)) return "no channels, no taps, or channels that do not divide into the groups";
  if (p.stride[0] < 1 || p.stride[1] < 1 || p.dilation[0] < 1 || p.dilation[1] < 1)
    return "a stride or dilation below 1";
  if (p.padding[0] < 0 || p.padding[1] < 0) return "a negative padding";
  if (p.batch < 0 || p.height < 0 || p.width < 0) return "a negative size";
  if (!fits(p.out_channels)) return "2^31 - 128 output channels or more";
  if (!fits(int64_t{p.height} * p.width)) return "2^31 - 128 pixels or more in a map";
  if (!fits(taps) || !fits(taps * (p.channels / p.group + 128))) return "2^31 weights or more for an output channel";
  return reaches(p.out_height, p.stride[0], p.kernel_h, p.dilation[0]) &&
                 reaches(p.out_width, p.stride[1], p.kernel_w, p.dilation[1])
             ? nullptr
             : "taps that reach 2^31 - 128 pixels or more";
}
inline bool is_supported(const Params& p) { return unsupported(p) == nullptr; }

// One bilinear sample of a map: corners outside it have pixel -1 and count as zero.
struct alignas(16) Sample {
  int32_t pixel[4];  // row * width + column: top left, top right, bottom left, bottom right
  float weight[4];   // times the modulation mask
};

// A point off the map by a whole pixel or more gives zero, and so does one that is NaN or infinite.
UPSNET_HD Sample sample_at(float y, float x, float mask, int32_t height, int32_t width) {
  const bool inside = y > -1.0f && y < float(height) && x > -1.0f && x < float(width);
  const float floor_y = inside ? floorf(y) : 0.0f, floor_x = inside ? floorf(x) : 0.0f;
  const float down = inside ? y - floor_y : 0.0f, right = inside ? x - floor_x : 0.0f;
  const float up = inside ? 1.0f - down : 0.0f, left = inside ? 1.0f - right : 0.0f;
  const int32_t row = int32_t(floor_y), column = int32_t(floor_x), first = row * width + column;
  const bool above = inside && row >= 0, below = inside && row + 1 < height;
  const bool before = column >= 0, after = column + 1 < width;
  Sample sample;
  sample.pixel[0] = above && before ? first : -1;
  sample.pixel[1] = above && after ? first + 1 : -1;
  sample.pixel[2] = below && before ? first + width : -1;
  sample.pixel[3] = below && after ? first + width + 1 : -1;
  sample.weight[0] = up * left * mask;
  sample.weight[1] = up * right * mask;
  sample.weight[2] = down * left * mask;
  sample.weight[3] = down * right * mask;
  return sample;
}

// What tap `tap` (row by row) of output pixel (row, column) samples, for the channels of one offset group.
UPSNET_HD Sample sample_of(const Params& p, int32_t image, int32_t offset_group, int32_t tap, int32_t row,
                           int32_t column) {
  const int64_t plane = int64_t(p.out_height) * p.out_width, place = int64_t(row) * p.out_width + column;
  const int64_t index = (int64_t(image) * p.offset_group + offset_group) * (p.kernel_h * p.kernel_w) + tap;
  const float* shift = p.offset + 2 * index * plane + place;
  const float mask = p.mask ? p.mask[index * plane + place] : 1.0f;
  const float y = float(row * p.stride[0] - p.padding[0] + tap / p.kernel_w * p.dilation[0]) + shift[0];
  const float x = float(column * p.stride[1] - p.padding[1] + tap % p.kernel_w * p.dilation[1]) + shift[plane];
  return sample_at(y, x, mask, p.height, p.width);
}

UPSNET_HD float blend(const float (&weight)[4], float v0, float v1, float v2, float v3) {
  return weight[0] * v0 + weight[1] * v1 + weight[2] * v2 + weight[3] * v3;
}

// Consecutive channels that share their group of weights and their group of offsets.
inline int32_t segment_channels(const Params& p) { return std::gcd(p.channels / p.group, p.channels / p.offset_group); }

}  // namespace upsnet::deform_conv
