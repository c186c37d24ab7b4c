// Which pixels the boxes can read: NCHW maps are transposed where some box reads them, and nowhere else.
#pragma once

#include "common/cuda.h"
#include "roi_align_fpn/kernel.cuh"

namespace upsnet::roi_align_fpn {

// values[level], without the copy to local memory that an index into kernel parameters costs.
template <typename Value>
__device__ __forceinline__ Value pick(const Value (&values)[kLevels], int level) {
  static_assert(kLevels == 4, "one choice for each level");
  const Value low = level == 0 ? values[0] : values[1], high = level == 2 ? values[2] : values[3];
  return level < 2 ? low : high;
}

// A range of rows or columns, of whole numbers.
struct Range {
  float first, last;
  UPSNET_HD bool meets(int from, int to) const {
    return first <= static_cast<float>(to) && last >= static_cast<float>(from);
  }
};

// Holds every tap that find_line finds for a finite box on this level, whatever is rounded: a sample lies between the
// ends of its box, or is drawn to the border from less than a pixel away, and its taps are less than a pixel from it.
UPSNET_HD Range taps_between(float from, float to, int level, const Params& params) {
  const float scale = scale_of(level), shift = params.aligned ? 0.5f : 0.0f;
  const float low = fminf(from, to) * scale - shift;
  float high = fmaxf(from, to) * scale - shift;
  if (!params.aligned) high = fmaxf(high, from * scale + 1.0f);  // from where it starts, inverted or not
  const float rounding = 1e-6f * (fabsf(low) + fabsf(high));
  return {low - 1.0f - rounding, high + 1.0f + rounding};
}

// The pixels from one to another of a map, row by row.
struct Stretch {
  int top, bottom;  // rows of the first and of the last one
  int left, right;  // their columns
  int last_column;  // of the map

  UPSNET_HD Stretch(int first, int last, int width)
      : top(first / width),
        bottom(last / width),
        left(first - top * width),
        right(last - bottom * width),
        last_column(width - 1) {}

  UPSNET_HD bool meets(Range rows, Range columns) const {
    if (bottom == top) return rows.meets(top, top) && columns.meets(left, right);
    if (bottom > top + 1) return rows.meets(top, bottom);
    return (rows.meets(top, top) && columns.meets(left, last_column)) ||
           (rows.meets(bottom, bottom) && columns.meets(0, right));
  }
};

// Whether the box belongs to this level and can read one of the pixels.
UPSNET_HD bool reads(const float* box, int level, const Params& params, const Stretch& pixels) {
  const Range rows = taps_between(box[1], box[3], level, params), columns = taps_between(box[0], box[2], level, params);
  return pixels.meets(rows, columns) && level_of(box, params.inclusive != 0, params.rounded_levels != 0) == level;
}

// For transpose(): all threads of a block look at the boxes of the image, and each gets the answer.
struct UnderSomeBox {
  Params params;

  __device__ bool operator()(int level, int64_t image, int64_t first, int64_t count) const {
    const float* boxes = params.rois + 4 * image * params.rois_per_image;
    const Stretch pixels(int(first), int(first + count - 1), pick(params.widths, level));
    const unsigned rois = params.rois_per_image;
    for (unsigned begin = 0; begin < rois; begin += blockDim.x) {
      const unsigned i = begin + threadIdx.x;
      const bool some = i < rois && reads(boxes + 4 * int64_t{i}, level, params, pixels);
      if (__syncthreads_or(some)) return true;
    }
    return false;
  }
};

}  // namespace upsnet::roi_align_fpn
