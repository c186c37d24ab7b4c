// Under all steps, on a GPU and on a CPU: they include this file and add no arithmetic of their own.
// Panoptic fusion, pixel by pixel: every formula whose rounding decides a label, once for the GPU and the CPU.
//
// Fixed order of operations; the only fused multiply-adds are the explicit ones (both fronts are compiled without
// contraction), so that all fronts give the same integers. Logits are bounded to +-2^100 (NaN counts as -2^100): every
// sum below is finite then, and every comparison has one answer.
#pragma once

#include <cmath>

#include "common/numeric.h"
#include "common/types.h"
#include "panoptic_fusion/launch.h"

namespace upsnet::panoptic_fusion {

constexpr int kScale = 4;          // network pixels for one cell of the semantic map
constexpr int kMaxRows = 255;      // stuff classes + detections: the map is uint8
constexpr int kMaxMask = 512;      // cells of a mask's side
constexpr int kMaxSide = 1 << 16;  // cells of the map's side: a grid has up to 65535 blocks in y, of two rows of cells
constexpr int kVoid = 255;         // label of void and unknown; 0 .. S-1 are stuff, S + d is detection d
constexpr int kNone = 255;         // no detection, no stuff class
constexpr float kLogitLimit = 0x1p100f;
constexpr float kFarthest = 0x1p23f;               // boxes are clamped to it, beyond every image
constexpr int kMostClasses = 1 << 24;              // of things, where the channels do not say it: a float counts so far
constexpr int kRounds = 8;                         // of prune.cuh
constexpr int kWordsOfTile = 8, kRowsOfTile = 32;  // of prune.cuh: the words have 32 pixels

inline size_t words_of(const Params& p) { return (size_t{kScale} * p.width + 31) / 32; }
inline int tiles_across(const Params& p) { return int(words_of(p) + kWordsOfTile - 1) / kWordsOfTile; }
inline int tiles_of(const Params& p) { return tiles_across(p) * ((kScale * p.height + kRowsOfTile - 1) / kRowsOfTile); }

// Why no front can run it, null where all can; the bindings explain what they refuse.
inline const char* unsupported(const Params& p) {
  const int64_t cells = int64_t{p.height} * p.width, channels = int64_t{p.num_stuff} + p.num_things;
  if (p.num_stuff < 1) return "no stuff classes";
  if (p.batch < 0 || p.num_things < 0 || p.detections < 0 || p.height < 0 || p.width < 0) return "a negative size";
  if (int64_t{p.num_stuff} + p.detections > kMaxRows) return "more than 255 stuff classes and detections";
  if ((p.mask_size < 1 && p.detections > 0) || p.mask_size > kMaxMask) return "masks outside 1 x 1 .. 512 x 512";
  if (p.batch > 65535) return "more than 65535 images";
  if (p.height > kMaxSide || p.width > kMaxSide) return "a semantic map higher or wider than 65536";
  if (cells * kScale * kScale > INT32_MAX) return "2^31 pixels or more in a panoptic map";
  if (channels > INT32_MAX || cells * channels > INT32_MAX) return "2^31 or more semantic logits of an image";
  // What prune.cuh draws from: a tile in each round, and one that each block draws too much.
  return p.detections == 0 || int64_t{p.batch} * tiles_of(p) * (kRounds + 1) <= INT32_MAX
             ? nullptr
             : "2^31 / 9 tiles of 256 x 32 pixels or more in all panoptic maps";
}
inline bool is_supported(const Params& p) { return unsupported(p) == nullptr; }

UPSNET_HD int smaller(int a, int b) { return a < b ? a : b; }
UPSNET_HD int larger(int a, int b) { return a > b ? a : b; }
UPSNET_HD int clamped(int value, int low, int high) { return value < low ? low : value > high ? high : value; }

// The larger one; the second where the first is NaN.
UPSNET_HD float higher(float a, float b) {
#ifdef __CUDA_ARCH__
  return fmaxf(a, b);
#else
  return a > b ? a : b;
#endif
}

UPSNET_HD float lower(float a, float b) {
#ifdef __CUDA_ARCH__
  return fminf(a, b);
#else
  return a < b ? a : b;
#endif
}

// a * b + c, rounded once; finite.
UPSNET_HD float multiply_add(float a, float b, float c) {
#if defined(__CUDACC__)
  return fmaf(a, b, c);
#elif defined(__FP_FAST_FMAF)
  return __builtin_fmaf(a, b, c);
#else  // no such instruction, and the library's function takes one value at a time
  // The product is exact. The sum is rounded to odd, that is towards zero with its last bit set where anything was lost
  // (Boldo, Melquiond: Emulation of FMA, 2008): float(odd) then rounds as if from the true sum. Free of branches.
  const double product = double(a) * double(b), sum = product + double(c), part = sum - product;
  const double error = (product - (sum - part)) + (double(c) - part);
  int64_t bits, sign;
  std::memcpy(&bits, &sum, sizeof bits);
  std::memcpy(&sign, &error, sizeof sign);
  bits -= error != 0.0 && (sign ^ bits) < 0 ? 1 : 0;
  bits |= error != 0.0 ? 1 : 0;
  double odd;
  std::memcpy(&odd, &bits, sizeof odd);
  return float(odd);
#endif
}

template <typename T>
UPSNET_HD float logit_of(T value) {
  return lower(higher(to_float(value), -kLogitLimit), kLogitLimit);
}

UPSNET_HD float lerp(float a, float b, float weight) { return multiply_add(weight, b - a, a); }

// --- the semantic map, four times as large ---------------------------------------------------------------------------
// Half-pixel centres: pixels 4i + 2 .. 4i + 5 lie between the centres of cells i and i + 1, at these weights. (Cells
// are clamped at the border, where both corners are one.) Rows are blended first, then columns.

UPSNET_HD float phase_weight(int phase) { return 0.125f + 0.25f * float(phase); }

// --- boxes -----------------------------------------------------------------------------------------------------------

// The pixels of a detection, last ones inclusive, unclipped. Of both boxes left, top is the first pixel.
struct Window {
  int left, top;
  int right, bottom;                  // of the mask: int(x1) .. int(x2), none when inverted
  int segment_right, segment_bottom;  // of the semantic channel: int(x1) .. round(x2), half to even. Else as the mask

  UPSNET_HD int last_column() const { return larger(right, segment_right); }
  UPSNET_HD int last_row() const { return larger(bottom, segment_bottom); }
};

UPSNET_HD float bounded_coordinate(float value) { return lower(higher(value, -kFarthest), kFarthest); }

UPSNET_HD Window window_of(const float* box) {
  const float x1 = bounded_coordinate(box[0]), y1 = bounded_coordinate(box[1]);
  const float x2 = bounded_coordinate(box[2]), y2 = bounded_coordinate(box[3]);
  Window window;
  window.left = int(x1);
  window.top = int(y1);
  window.right = int(x2);
  window.bottom = int(y2);
  window.segment_right = int(rintf(x2));
  window.segment_bottom = int(rintf(y2));
  return window;
}

// The heuristic merge: the pixels whose centres lie in the box, on its border too. Where all cells count no more than 1
// and 0 is around them, no other pixel can reach one half. (A centre is exact, and so is x - .5 from 0 on.)
UPSNET_HD Window pasted_window_of(const float* box) {
  const float x1 = bounded_coordinate(box[0]), y1 = bounded_coordinate(box[1]);
  const float x2 = bounded_coordinate(box[2]), y2 = bounded_coordinate(box[3]);
  Window window;
  window.left = int(ceilf(x1 - 0.5f));
  window.top = int(ceilf(y1 - 0.5f));
  window.right = window.segment_right = x2 > x1 ? int(floorf(x2 - 0.5f)) : window.left - 1;
  window.bottom = window.segment_bottom = y2 > y1 ? int(floorf(y2 - 0.5f)) : window.top - 1;
  return window;
}

// Of detection `row`, counted over the whole batch.
UPSNET_HD Window window_of(const Params& p, size_t row) {
  return p.heuristic ? pasted_window_of(p.boxes + 4 * row) : window_of(p.boxes + 4 * row);
}

// A detection with a NaN coordinate or a class that does not exist is dropped.
UPSNET_HD bool is_usable(const float* box, int64_t category, int num_things) {
  const bool numbers = box[0] == box[0] && box[1] == box[1] && box[2] == box[2] && box[3] == box[3];
  return numbers && category >= 0 && category < num_things;
}
UPSNET_HD bool is_usable(const Params& p, size_t row) {
  return is_usable(p.boxes + 4 * row, p.classes[row], p.heuristic ? kMostClasses : p.num_things);
}

// The part of an image inside its padding, and how many of its detections are valid.
struct Valid {
  int height, width, detections;
};

UPSNET_HD Valid valid_of(const Params& p, int image) {
  return {clamped(p.sizes[2 * image], 0, kScale * p.height), clamped(p.sizes[2 * image + 1], 0, kScale * p.width),
          clamped(p.counts[image], 0, p.detections)};
}

// A detection's mask box inside the valid part of its image; empty when last < first.
struct Clip {
  int first_x, first_y, last_x, last_y;

  UPSNET_HD bool empty() const { return last_x < first_x || last_y < first_y; }
};

UPSNET_HD Clip clip_of(const Window& window, const Valid& valid) {
  return {larger(window.left, 0), larger(window.top, 0), smaller(window.right, valid.width - 1),
          smaller(window.bottom, valid.height - 1)};
}

// --- the mask --------------------------------------------------------------------------------------------------------

// Where a pixel of a line of `size` pixels lies among the cells of the mask: between cell and cell + 1.
struct Sample {
  int cell;
  float weight;  // of cell + 1
};

UPSNET_HD Sample sample_of(int pixel, int size, int cells) {
  const float source = (float(pixel) + 0.5f) * float(cells) / float(size) - 0.5f;
  const float inside = lower(higher(source, 0.0f), float(cells - 1));
  const int cell = int(inside);
  return {cell, inside - float(cell)};
}

UPSNET_HD int next_cell(int cell, int cells) { return smaller(cell + 1, cells - 1); }

// Cell `column` of the mask [cells, cells], blended to a pixel's row: rows first, as in the reference's rows @ mask @
// columns. A mask term is the lerp of two such along the row.
template <typename T>
UPSNET_HD float mask_column(const T* mask, int cells, Sample row, int column) {
  const float upper = logit_of(mask[row.cell * cells + column]);
  return lerp(upper, logit_of(mask[next_cell(row.cell, cells) * cells + column]), row.weight);
}

// --- the pasted mask, for the heuristic merge ------------------------------------------------------------------------
// Cells -1 and `cells` are 0. A pixel of the window lies between cell and cell + 1, where -1 <= cell < cells.

// 1 / (1 + e^-logit), to 2 units in the last place; one half at 0, never above 1. e^-|logit| is 2^n e^rest.
UPSNET_HD float probability_of(float logit) {
  const float x = -lower(fabsf(logit), 80.0f);
  const float n = rintf(x * 0x1.715476p0f);                                                  // log2 e
  const float rest = multiply_add(n, 0x1.05c610p-29f, multiply_add(n, -0x1.62e430p-1f, x));  // ln 2 in two parts
  float power = 0x1.a01a02p-13f;  // the series of e^rest, |rest| < .35
  power = multiply_add(power, rest, 0x1.6c16c2p-10f);
  power = multiply_add(power, rest, 0x1.111112p-7f);
  power = multiply_add(power, rest, 0x1.555556p-5f);
  power = multiply_add(power, rest, 0x1.555556p-3f);
  power = multiply_add(power, rest, 0.5f);
  power = multiply_add(power, rest, 1.0f);
  power = multiply_add(power, rest, 1.0f);
  const int32_t bits = (int(n) + 127) * (1 << 23);
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  power *= scale;
  return (logit < 0.0f ? power : 1.0f) / (1.0f + power);
}

template <typename T>
UPSNET_HD float probability_at(const T* mask, int cells, int row, int column) {
  const bool inside = row >= 0 && row < cells && column >= 0 && column < cells;
  return inside ? probability_of(logit_of(mask[row * cells + column])) : 0.0f;
}

// Where a pixel of the window lies. low, high: the box, bounded.
UPSNET_HD Sample pasted_sample_of(int pixel, float low, float high, int cells) {
  const float place = (float(pixel) + 0.5f - low) / (high - low) * float(cells) - 0.5f;
  const float cell = floorf(place);
  return {int(cell), place - cell};
}

// Of a mask's rows or columns blended: does the pixel belong to the mask? Rows are blended first, as in mask_column.
UPSNET_HD bool is_pasted(float probability) { return probability >= 0.5f; }

// --- decisions -------------------------------------------------------------------------------------------------------

UPSNET_HD bool is_accepted(int overlap, int area, float threshold) {
  return area > 0 && float(overlap) / float(area) <= threshold;
}

// Instances that do not cover a pixel compete there with 0; of these only the first can win. Does it, over the best?
UPSNET_HD bool absent_wins(float best, int label, int absent_label) {
  return (best < 0.0f) | ((best == 0.0f) & (label > absent_label));  // without branches
}

// Stuff with this many votes takes an instance over. Half of the area is enough: no thing class can then have more, and
// in a tie stuff comes first. So what things got need not be counted one by one.
UPSNET_HD bool is_outvoted(int votes, int area) { return votes > 0 && votes >= area - votes; }

UPSNET_HD float network_area(float original, float scale) { return original * scale * scale; }

}  // namespace upsnet::panoptic_fusion
