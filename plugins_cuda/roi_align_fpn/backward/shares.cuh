// What each box's rows and columns of its map get of its bins (kernel.cuh), found once, in the workspace.
#pragma once

#include <type_traits>

#include "common/cuda.h"
#include "roi_align_fpn/backward/kernel.cuh"
#include "roi_align_fpn/touched.cuh"

namespace upsnet::roi_align_fpn_backward {

using roi_align_fpn::pick;

constexpr int kFinders = 64;  // threads that find a box's shares
constexpr int kVectorBytes = 16;

// A box.
struct alignas(16) Found {
  Reach reach;
  int32_t counts[2];  // of shares: [rows, columns]
};

// The workspace. Of every box and direction there is the same room.
template <typename Real>
struct Workspace {
  Found* found;         // [box]
  Line* lines;          // [box][2][bin]
  TapOf<Real>* taps;    // [box][2][room], as forward has them
  Share<Real>* shares;  // [box][2][room], by rows or columns of the map
  int32_t* reached;     // [box][2][room], these rows or columns
  int room;
  unsigned char* bins;  // [box][bin][channel]
  size_t bytes;

  Workspace(const Params& params, void* memory) {
    const size_t boxes = size_t(params.batch) * params.rois_per_image, size = params.output_size;
    room = roi_align_fpn::taps_of_direction(forward_of(params));
    bytes = 0;
    const auto take = [&](auto*& part, size_t count) {
      part = reinterpret_cast<std::remove_reference_t<decltype(part)>>(reinterpret_cast<uintptr_t>(memory) + bytes);
      bytes += aligned(count * sizeof *part);
    };
    take(found, boxes);
    take(lines, boxes * 2 * size);
    take(taps, boxes * 2 * room);
    take(shares, boxes * 2 * room);
    take(reached, boxes * 2 * room);
    take(bins, params.features_type == kFloat64 ? 0 : boxes * size * size * channel_bytes(params));
  }

  // Whole vectors.
  static size_t channel_bytes(const Params& params) {
    const size_t bytes = params.channels * element_size(params.features_type);
    return (bytes + kVectorBytes - 1) / kVectorBytes * kVectorBytes;
  }
};

// One direction's taps, in the map's order: each goes where as many are before it.
template <typename Real>
__device__ void sort_taps(const Line* lines, int bins, const TapOf<Real>* taps, Share<Real>* shares, int32_t* reached) {
  for (int bin = threadIdx.x / 32; bin < bins; bin += kFinders / 32) {
    for (int i = threadIdx.x % 32; i < lines[bin].count; i += 32) {
      const TapOf<Real> own = taps[lines[bin].first + i];
      int before = 0;
      for (int other = 0; other < bins; ++other) {
        const Line line = lines[other];
        for (int j = line.first; j < line.first + line.count; ++j) {
          const int index = taps[j].index;
          before += index < own.index || (index == own.index && other < bin);
        }
      }
      reached[before] = own.index;
      shares[before] = {bin, own.weight};
    }
  }
}

// Grid: boxes.
template <typename Real>
__global__ void __launch_bounds__(kFinders) find_shares(Forward params, Workspace<Real> space) {
  const int box = blockIdx.x, bins = params.output_size;
  const float* corners = params.rois + 4 * int64_t{box};
  const int level = roi_align_fpn::level_of(corners, params.inclusive != 0, params.rounded_levels != 0);
  const int64_t line_at = int64_t{box} * 2 * bins, at = int64_t{box} * 2 * space.room;
  for (int i = threadIdx.x; i < 2 * bins; i += kFinders) {
    const bool is_column = i >= bins;
    const int length = is_column ? pick(params.widths, level) : pick(params.heights, level);
    TapOf<Real>* const taps = space.taps + at + (is_column ? space.room : 0);
    space.lines[line_at + i] =
        roi_align_fpn::find_line(params, corners, level, is_column, is_column ? i - bins : i, length, taps);
  }
  __syncthreads();
  for (int direction = 0; direction < 2; ++direction) {
    const int64_t begin = at + direction * space.room;
    sort_taps(space.lines + line_at + direction * bins, bins, space.taps + begin, space.shares + begin,
              space.reached + begin);
  }
  __syncthreads();
  if (threadIdx.x > 0) return;
  int row_shares = 0, column_shares = 0;
  for (int i = 0; i < bins; ++i) {
    row_shares += space.lines[line_at + i].count;
    column_shares += space.lines[line_at + bins + i].count;
  }
  Reach reach{level};
  if (row_shares > 0 && column_shares > 0) {
    const int32_t *rows = space.reached + at, *columns = rows + space.room;
    reach = {level, rows[0], rows[row_shares - 1], columns[0], columns[column_shares - 1]};
  }
  space.found[box] = {reach, {row_shares, column_shares}};
}

}  // namespace upsnet::roi_align_fpn_backward
