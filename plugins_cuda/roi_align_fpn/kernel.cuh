// RoIAlign over P2..P5: the level of a box, and where its bins sample.
//
// The samples of a bin form a grid and bilinear weights are products, so a bin is separable: a list of rows and a list
// of columns ("taps", each with a weight), and its value is the sum over both of row weight * column weight * pixel.
// Samples closer than a pixel share taps: merged, a bin of 2 x 2 samples has 4 to 16 pixels instead of always 16, and
// one of n x n counted samples (sampling_ratio 0) about (n + 1)^2 instead of 4 n^2.
// All of it is float, whatever the features are; double for gradients of such features.
#pragma once

#include <cmath>

#include "common/numeric.h"
#include "roi_align_fpn/launch.h"

namespace upsnet::roi_align_fpn {

constexpr int kFinestStride = 4;
constexpr float kCanonicalSize = 224.0f;  // side in network pixels of the smallest square box on P4
constexpr float kLongest = 32768.0f;      // network pixels: where samples are counted, a longer box ends there
constexpr int kLongestSide = 8192;        // of a map where samples are counted: of P2, as many pixels

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
  if (p.sampling_ratio == 0) {
    for (int level = 0; level < kLevels; ++level) {
      const bool short_enough = p.heights[level] <= kLongestSide && p.widths[level] <= kLongestSide;
      if (!short_enough) return "more than 8192 rows or columns in one of P2..P5, and sampling_ratio 0";
    }
  }
  const bool samples = p.output_size >= 1 && p.sampling_ratio >= 0;
  return samples && int64_t{p.output_size} * (p.sampling_ratio > 0 ? p.sampling_ratio : 1) <= kMaxSamples
             ? nullptr
             : "output_size times sampling_ratio outside 1..1024";
}
inline bool is_supported(const Params& p) { return unsupported(p) == nullptr; }

template <typename Real>
struct alignas(2 * sizeof(Real)) TapOf {  // read at once
  int32_t index;                          // row or column of the map
  Real weight;
};
using Tap = TapOf<float>;

// The taps of a bin in one direction: `count` of its box's, from `first` on.
struct Line {
  int32_t first;
  int32_t count;
};

// A box along one direction of its map, in pixels of the map.
template <typename Real>
struct Extent {
  Real start;
  Real bin;     // size of a bin; negative for inverted boxes
  int samples;  // of a bin
};

UPSNET_HD float least(float a, float b) { return fminf(a, b); }
UPSNET_HD double least(double a, double b) { return fmin(a, b); }
UPSNET_HD float most(float a, float b) { return fmaxf(a, b); }
UPSNET_HD double most(double a, double b) { return fmax(a, b); }
UPSNET_HD float rounded_up(float value) { return ceilf(value); }
UPSNET_HD double rounded_up(double value) { return ceil(value); }

UPSNET_HD bool is_finite(const float* box) {
  // x - x is NaN for NaN and for infinities.
  return (box[0] - box[0]) + (box[1] - box[1]) + (box[2] - box[2]) + (box[3] - box[3]) == 0.0f;
}

// 0..3: P2..P5. Inverted boxes count as empty; every comparison with NaN is false: level 0. Why the limits are what
// they are: reference.py.
UPSNET_HD int level_of(const float* box, bool inclusive, bool rounded) {
  const float extra = inclusive ? 1.0f : 0.0f;
  const float width = fmaxf(box[2] - box[0] + extra, 0.0f), height = fmaxf(box[3] - box[1] + extra, 0.0f);
  const float ratio = sqrtf(width * height) / kCanonicalSize;
  if (rounded) return (ratio >= 0x1.fffffcp-2f) + (ratio >= 0x1.fffffep-1f) + (ratio >= 0x1.fffffap+0f);
  const float more = ratio + 1e-6f;
  return (more >= 0.5f) + (more >= 1.0f) + (more >= 2.0f);
}

UPSNET_HD float scale_of(int level) { return 1.0f / static_cast<float>(kFinestStride << level); }

// Of a finite box.
template <typename Real>
UPSNET_HD Extent<Real> extent_of(Real low, Real high, int level, const Params& params) {
  const bool counted = params.sampling_ratio == 0;
  const Real scale = scale_of(level), shift = params.aligned ? 0.5f : 0.0f;
  if (counted) high = most(least(high, low + kLongest), low);
  const Real start = low * scale - shift;
  Real size = high * scale - shift - start;
  if (!params.aligned) size = most(size, Real{1});
  const Real bin = size / static_cast<Real>(params.output_size);
  return {start, bin, counted ? static_cast<int>(rounded_up(bin)) : params.sampling_ratio};
}

template <typename Real>
UPSNET_HD Real place_of(Extent<Real> extent, int bin, int sample) {
  const Real offset = (static_cast<Real>(sample) + Real{0.5}) * extent.bin / static_cast<Real>(extent.samples);
  return extent.start + product(static_cast<Real>(bin), extent.bin) + offset;
}

template <typename Real>
UPSNET_HD Real drawn_inside(Real place, int length) {
  return least(most(place, Real{0}), static_cast<Real>(length - 1));
}

// Places come in order, so only one of the three newest taps can be the same.
template <typename Real>
UPSNET_HD int add_tap(TapOf<Real>* taps, int count, int index, Real weight) {
  for (int i = count - 1; i >= 0 && i >= count - 3; --i) {
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
template <typename Real>
UPSNET_HD int bin_taps(Extent<Real> extent, int bin, int length, TapOf<Real>* taps) {
  const Real share = Real{1} / static_cast<Real>(extent.samples);
  int count = 0;
  for (int sample = 0; sample < extent.samples; ++sample) {
    const Real place = place_of(extent, bin, sample);
    if (!(place >= Real{-1} && place <= static_cast<Real>(length))) continue;
    const Real inside = drawn_inside(place, length);
    const int index = static_cast<int>(inside);
    const Real fraction = inside - static_cast<Real>(index);
    count = add_tap(taps, count, index, (Real{1} - fraction) * share);
    if (fraction > Real{0}) count = add_tap(taps, count, index + 1, fraction * share);
  }
  return count;
}

// Room for the taps of a box in one direction.
//
// Counted samples lie at most a pixel apart, so that the taps of a bin are neighbours: as many as it needs between the
// first and the last pixel of the map. Where a bin ends the next one begins, and two share two pixels, or three where
// places are rounded: pixel i of bin b has its place at i + 3 b.
inline int taps_of_direction(const Params& params) {
  if (params.sampling_ratio > 0) return 2 * params.output_size * params.sampling_ratio;
  int longest = 0;
  for (int level = 0; level < kLevels; ++level) {
    if (params.heights[level] > longest) longest = params.heights[level];
    if (params.widths[level] > longest) longest = params.widths[level];
  }
  return longest + 3 * params.output_size;
}

// Writes the taps of one bin of a box. length: of the map in this direction. taps: the box's of this direction, with
// room for taps_of_direction(params).
template <typename Real>
UPSNET_HD Line find_line(const Params& params, const float* box, int level, bool is_column, int bin, int length,
                         TapOf<Real>* taps) {
  if (!is_finite(box) || length < 1) return {0, 0};
  const auto extent = extent_of<Real>(box[is_column ? 0 : 1], box[is_column ? 2 : 3], level, params);
  if (extent.samples < 1) return {0, 0};
  const int first = params.sampling_ratio > 0
                        ? 2 * params.sampling_ratio * bin
                        : static_cast<int>(drawn_inside(place_of(extent, bin, 0), length)) + 3 * bin;
  return {first, bin_taps(extent, bin, length, taps + first)};
}

}  // namespace upsnet::roi_align_fpn
