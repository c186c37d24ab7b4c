// The gradient of RoIAlign over P2..P5: the same taps as forward (../kernel.cuh), read the other way round.
//
// Forward, a bin has taps: rows and columns of the map, each with a weight. Here a row of the map has shares: the bins
// of a box that have a tap there, with the same weights; and so has a column. A pixel's gradient is the sum over the
// boxes, in their order, over both: row weight * column weight * gradient of the bin. Whoever owns a pixel can compute
// it alone: nothing is added to by two, and the sum has one order.
#pragma once

#include "roi_align_fpn/backward/launch.h"
#include "roi_align_fpn/kernel.cuh"

namespace upsnet::roi_align_fpn_backward {

using roi_align_fpn::kLevels;
using roi_align_fpn::Line;
using roi_align_fpn::TapOf;

// A bin that has a tap in some row or column: `index` is the bin's, of this direction.
template <typename Real>
using Share = TapOf<Real>;

using Forward = roi_align_fpn::Params;  // its pointers to maps are null

inline Forward forward_of(const Params& p) {
  Forward forward{};
  forward.rois = p.rois;
  forward.batch = p.batch;
  forward.channels = p.channels;
  forward.rois_per_image = p.rois_per_image;
  forward.output_size = p.output_size;
  forward.sampling_ratio = p.sampling_ratio;
  forward.aligned = p.aligned;
  forward.inclusive = p.inclusive;
  forward.rounded_levels = p.rounded_levels;
  for (int level = 0; level < kLevels; ++level) {
    forward.heights[level] = p.heights[level];
    forward.widths[level] = p.widths[level];
  }
  return forward;
}

inline bool is_supported(const Params& p) { return roi_align_fpn::is_supported(forward_of(p)); }

// The part of its map that a box's taps span; nothing where it has none.
struct Reach {
  int32_t level;
  int32_t top = 0, bottom = -1, left = 0, right = -1;  // the first and the last row and column

  UPSNET_HD bool meets(int map, int row, int column, int rows, int columns) const {
    return map == level && row <= bottom && row + rows > top && column <= right && column + columns > left;
  }
};

}  // namespace upsnet::roi_align_fpn_backward
