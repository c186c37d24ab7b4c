// RoIAlign over P2..P5: the level of a box, and where its bins sample.
//
// The samples of a bin form a grid and bilinear weights are products, so a bin is separable: a list of rows and a list
// of columns ("taps", each with a weight), and its value is the sum over both of row weight * column weight * pixel.
// Samples closer than a pixel share taps: merged, a bin of 2 x 2 samples has 4 to 16 pixels instead of always 16.
// All of it is float, whatever the features are.
#pragma once

#include <cmath>

#include "common/numeric.h"
#include "roi_align_fpn/launch.h"

namespace upsnet::roi_align_fpn {

// Why no front can run it, null where all can; the bindings explain what they refuse. Pixels of a map and offsets
// inside one of its lines are 32-bit numbers, with room for one tile more.
inline const char* unsupported(const Params& p) {
  const auto fits = [](int64_t value) { return value <= INT32_MAX - 64; };
  if (p.batch < 0 || p.channels < 0 || p.rois_per_image < 0) return "a negative size";
  if (!fits(p.channels)) return "2^31 - 64 channels or more";
  for (int level = 0; level < kLevels; ++level) {
    if (p.heights[level] < 0 || p.widths[level] < 0) return "a negative size";
    if (!fits(int64_t{p.heights[level]} * p.widths[level])) return "2^31 - 64 pixels or more in one of P2..P5";
    if (!fits(int64_t{p.widths[level]} * (p.channels + 8))) return "2^31 numbers or more in a row of one of P2..P5";
  }
  if (!fits(int64_t{p.batch} * p.rois_per_image)) return "2^31 - 64 rois or more";
  const bool samples = p.output_size >= 1 && p.sampling_ratio >= 1;
  return samples && int64_t{p.output_size} * p.sampling_ratio <= kMaxSamples
             ? nullptr
             : "output_size times sampling_ratio outside 1..1024";
}
inline bool is_supported(const Params& p) { return unsupported(p) == nullptr; }

constexpr int kFinestStride = 4;
constexpr float kCanonicalSize = 224.0f;  // side in network pixels of the smallest square box on P4

struct Tap {
  int32_t index;  // row or column of the map
  float weight;
};

// A box along one direction of its map, in pixels of the map.
struct Extent {
  float start;
  float bin;  // size of a bin; negative for inverted boxes
};

UPSNET_HD bool is_finite(const float* box) {
  // x - x is NaN for NaN and for infinities.
  return (box[0] - box[0]) + (box[1] - box[1]) + (box[2] - box[2]) + (box[3] - box[3]) == 0.0f;
}

// 0..3: P2..P5. Inverted boxes count as empty; every comparison with NaN is false: level 0.
UPSNET_HD int level_of(const float* box, bool inclusive) {
  const float extra = inclusive ? 1.0f : 0.0f;
  const float width = fmaxf(box[2] - box[0] + extra, 0.0f), height = fmaxf(box[3] - box[1] + extra, 0.0f);
  const float ratio = sqrtf(width * height) / kCanonicalSize + 1e-6f;
  return (ratio >= 0.5f) + (ratio >= 1.0f) + (ratio >= 2.0f);
}

UPSNET_HD float scale_of(int level) { return 1.0f / static_cast<float>(kFinestStride << level); }

UPSNET_HD Extent extent_of(float low, float high, float scale, int bins, bool is_aligned) {
  const float shift = is_aligned ? 0.5f : 0.0f;
  const float start = low * scale - shift;
  float size = high * scale - shift - start;
  if (!is_aligned) size = fmaxf(size, 1.0f);
  return {start, size / static_cast<float>(bins)};
}

UPSNET_HD int add_tap(Tap* taps, int count, int index, float weight) {
  for (int i = 0; i < count; ++i) {
    if (taps[i].index == index) {
      taps[i].weight += weight;
      return count;
    }
  }
  taps[count] = {index, weight};
  return count + 1;
}

// The taps of one bin along a map of `length` pixels; at most 2 * samples, returns how many. Samples outside
// [-1, length] count as zero, and so do NaN ones; those between the border and its outermost pixel are drawn to it. As
// the value jumps there, places are rounded like torchvision's on a CPU.
UPSNET_HD int bin_taps(Extent extent, int bin, int samples, int length, Tap* taps) {
  const float share = 1.0f / static_cast<float>(samples);
  int count = 0;
  for (int sample = 0; sample < samples; ++sample) {
    const float offset = (static_cast<float>(sample) + 0.5f) * extent.bin / static_cast<float>(samples);
    const float place = extent.start + product(static_cast<float>(bin), extent.bin) + offset;
    if (!(place >= -1.0f && place <= static_cast<float>(length)) || length < 1) continue;
    const float inside = fminf(fmaxf(place, 0.0f), static_cast<float>(length - 1));
    const int index = static_cast<int>(inside);
    const float fraction = inside - static_cast<float>(index);
    count = add_tap(taps, count, index, (1.0f - fraction) * share);
    if (fraction > 0.0f) count = add_tap(taps, count, index + 1, fraction * share);
  }
  return count;
}

}  // namespace upsnet::roi_align_fpn
