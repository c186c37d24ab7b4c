// Which pixels the boxes can read: NCHW maps are transposed where some box reads them, and nowhere else.
#pragma once

#include "common/cuda.h"
#include "roi_align_fpn/kernel.cuh"

namespace upsnet::roi_align_fpn {

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
  if (!params.aligned) high = fmaxf(high, low + 1.0f);
  const float rounding = 1e-6f * (fabsf(low) + fabsf(high));
  return {low - 1.0f - rounding, high + 1.0f + rounding};
}

// Whether a box of the level `level` can read one of the pixels [first, last] of a map `width` wide.
UPSNET_HD bool reads(const float* box, int level, const Params& params, int width, int first, int last) {
  const Range rows = taps_between(box[1], box[3], level, params), columns = taps_between(box[0], box[2], level, params);
  const int top = first / width, bottom = last / width, left = first - top * width, right = last - bottom * width;
  const bool near = bottom == top       ? rows.meets(top, top) && columns.meets(left, right)
                    : bottom == top + 1 ? (rows.meets(top, top) && columns.meets(left, width - 1)) ||
                                              (rows.meets(bottom, bottom) && columns.meets(0, right))
                                        : rows.meets(top, bottom);
  return near && level_of(box, params.inclusive != 0, params.rounded_levels != 0) == level;
}

// For transpose(): all threads of a block look at the boxes of the image, and each gets the answer.
struct UnderSomeBox {
  Params params;

  __device__ bool operator()(int level, int64_t image, int64_t first, int64_t count) const {
    const float* boxes = params.rois + 4 * image * params.rois_per_image;
    const int width = level == 0   ? params.widths[0]
                      : level == 1 ? params.widths[1]
                      : level == 2 ? params.widths[2]
                                   : params.widths[3];
    for (int begin = 0; begin < params.rois_per_image; begin += blockDim.x) {
      const int i = begin + threadIdx.x;
      const bool some = i < params.rois_per_image &&
                        reads(boxes + 4 * int64_t{i}, level, params, width, int(first), int(first + count - 1));
      if (__syncthreads_or(some)) return true;
    }
    return false;
  }
};

}  // namespace upsnet::roi_align_fpn
