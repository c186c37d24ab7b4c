// The gradient of RoIAlign over P2..P5 on a CPU.
//
// What is written is divided, not what is read: kRows x kColumns pixels of a map and kGroup channels of them belong to
// one thread, which walks the boxes that reach them, in their order, in a float buffer that stays in its L2 cache. So
// no thread adds to what another does, and a sum is the same for any number of threads.
//
// A box in turn: the gradients of its bins are transposed to [bin][kGroup], so that channels fill vector registers. As
// bins are separable (kernel.cuh), each row of bins is first spread along the columns of the map, then every row of the
// map takes its shares of those: 7 x 21 and 21 x 12 multiply-adds for a typical box of 12 x 12 pixels instead of
// 21 x 21, and each pixel of the map is read and written once for a box, instead of once for a tap.
//
// Floor, 1024 boxes x 256 channels x 7 x 7, float on P2..P5 of two images of 800 x 1344: the bins' gradients once (51
// MB) and those of the maps (183 MB), 23 ms at 10 GB/s a core; about 400 multiply-adds for a box and channel, 4.5 ms of
// a 3 GHz core with AVX2.
#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

#include "common/exports.h"
#include "common/pool.h"
#include "common/transpose.h"
#include "roi_align_fpn/backward/kernel.cuh"

namespace upsnet::roi_align_fpn_backward {
namespace {

constexpr int kGroup = 32;                // channels of a tile
constexpr int kRows = 32, kColumns = 64;  // its pixels: 256 KB of float

// A row or a column of the map, and the bins that have a tap there.
struct Reached {
  int32_t index;
  Line shares;
};

// A box in one direction, in the map's order.
template <typename Real>
struct Direction {
  std::vector<Reached> reached;
  std::vector<Share<Real>> shares;

  // The first one from this index on.
  const Reached* from(int index) const {
    const auto is_before = [](const Reached& one, int limit) { return one.index < limit; };
    return std::lower_bound(reached.data(), reached.data() + reached.size(), index, is_before);
  }

  void find(const Forward& params, const float* box, int level, bool is_column, TapOf<Real>* taps) {
    struct Tap {
      int index, bin;
      Real weight;
    };
    const int length = is_column ? params.widths[level] : params.heights[level];
    std::vector<Tap> found;
    for (int bin = 0; bin < params.output_size; ++bin) {
      const Line line = roi_align_fpn::find_line(params, box, level, is_column, bin, length, taps);
      for (int i = line.first; i < line.first + line.count; ++i) found.push_back({taps[i].index, bin, taps[i].weight});
    }
    std::sort(found.begin(), found.end(), [](const Tap& one, const Tap& other) {
      return one.index != other.index ? one.index < other.index : one.bin < other.bin;
    });
    for (const Tap& tap : found) {
      const int before = static_cast<int>(shares.size());
      if (reached.empty() || reached.back().index != tap.index) reached.push_back({tap.index, {before, 0}});
      ++reached.back().shares.count;
      shares.push_back({tap.bin, tap.weight});
    }
  }
};

template <typename Real>
struct Box {
  Direction<Real> rows, columns;
};

// Of all images.
template <typename Real>
struct Boxes {
  std::vector<Box<Real>> all;
  std::vector<Reach> reaches;  // to look through

  Boxes(const Forward& params, const Pool& pool)
      : all(static_cast<size_t>(params.batch) * params.rois_per_image), reaches(all.size()) {
    PerSlot<std::vector<TapOf<Real>>> taps(pool);
    for_each(pool, static_cast<int64_t>(all.size()), 16, [&](int64_t index, int slot) {
      std::vector<TapOf<Real>>& room = taps.at(slot, roi_align_fpn::taps_of_direction(params));
      find(params, params.rois + 4 * index, room.data(), all[index], reaches[index]);
    });
  }

  static void find(const Forward& params, const float* box, TapOf<Real>* taps, Box<Real>& found, Reach& reach) {
    reach.level = roi_align_fpn::level_of(box, params.inclusive != 0, params.rounded_levels != 0);
    found.rows.find(params, box, reach.level, false, taps);
    found.columns.find(params, box, reach.level, true, taps);
    if (found.rows.reached.empty() || found.columns.reached.empty()) return;
    reach.top = found.rows.reached.front().index, reach.bottom = found.rows.reached.back().index;
    reach.left = found.columns.reached.front().index, reach.right = found.columns.reached.back().index;
  }
};

// --- kGroup channels -------------------------------------------------------------------------------------------------

template <typename Real>
struct Channels {
  typedef Real Vector __attribute__((vector_size(32)));
  static constexpr int kVector = 32 / sizeof(Real), kVectors = kGroup / kVector;
  Vector sum[kVectors] = {};

  // Adds the shares of bins, which lie `pitch` numbers apart from `source` on.
  void add(const Share<Real>* shares, int count, const Real* source, int64_t pitch) {
    for (int i = 0; i < count; ++i) {
      const Real* const bin = source + shares[i].index * pitch;
      for (int k = 0; k < kVectors; ++k) {
        Vector read;
        std::memcpy(&read, bin + k * kVector, sizeof read);
        sum[k] += shares[i].weight * read;
      }
    }
  }
  void load(const Real* source) { std::memcpy(sum, source, sizeof sum); }
  void store(Real* target) const { std::memcpy(target, sum, sizeof sum); }
};

// --- a tile ----------------------------------------------------------------------------------------------------------

struct Place {
  int image, level;
  int channel, channels;
  int row, rows;
  int column, columns;
};

// What a slot works in.
template <typename Real>
struct Memory {
  static constexpr int64_t kLine = int64_t{kColumns} * kGroup;
  std::unique_ptr<Real[]> sums, bins, spread;  // [row][column], [bin], [row of bins][column], each [kGroup]
  bool touched[kRows];                         // rows of `sums` that hold something

  explicit Memory(int size)
      : sums(new Real[kRows * kLine]), bins(new Real[int64_t{size} * size * kGroup]), spread(new Real[size * kLine]) {}

  Real* row(int index) {
    Real* const line = sums.get() + index * kLine;
    if (!touched[index]) std::fill(line, line + kLine, Real{});
    touched[index] = true;
    return line;
  }
};

// Adds a box. grad: of its bins, [channel][bin], from the place's first channel on.
template <typename T, typename Real>
void add_box(const Box<Real>& box, const T* grad, int size, const Place& place, Memory<Real>& memory) {
  const Reached *top = box.rows.from(place.row), *bottom = box.rows.from(place.row + place.rows);
  const Reached *left = box.columns.from(place.column), *right = box.columns.from(place.column + place.columns);
  if (top == bottom || left == right) return;
  const Share<Real>*row_shares = box.rows.shares.data(), *column_shares = box.columns.shares.data();
  int first = size, last = 0;  // rows of bins that have a share here
  for (int i = top->shares.first; i < (bottom - 1)->shares.first + (bottom - 1)->shares.count; ++i) {
    first = std::min(first, row_shares[i].index), last = std::max(last, row_shares[i].index);
  }
  transpose(grad + first * size, int64_t{size} * size, memory.bins.get(), kGroup, place.channels,
            (last - first + 1) * size);
  for (int row = first; row <= last; ++row) {
    const Real* const bins = memory.bins.get() + int64_t{row - first} * size * kGroup;
    Real* target = memory.spread.get() + (row - first) * memory.kLine;
    for (const Reached* x = left; x < right; ++x, target += kGroup) {
      Channels<Real> channels;
      channels.add(column_shares + x->shares.first, x->shares.count, bins, kGroup);
      channels.store(target);
    }
  }
  for (const Reached* y = top; y < bottom; ++y) {
    Real* const line = memory.row(y->index - place.row);
    const Real* spread = memory.spread.get() - first * memory.kLine;
    for (const Reached* x = left; x < right; ++x, spread += kGroup) {
      Real* const pixel = line + (x->index - place.column) * kGroup;
      Channels<Real> channels;
      channels.load(pixel);
      channels.add(row_shares + y->shares.first, y->shares.count, spread, memory.kLine);
      channels.store(pixel);
    }
  }
}

// The tile -> the gradient of its map.
template <typename T, typename Real>
void write(const Params& params, const Place& place, Memory<Real>& memory) {
  const int64_t width = params.widths[place.level], pixels = params.heights[place.level] * width;
  T* const map = static_cast<T*>(params.grad_features[place.level]) + place.image * pixels * params.channels;
  const bool is_nhwc = params.features_layout == Layout::kNHWC;
  for (int row = 0; row < place.rows; ++row) {
    const Real* const sums = memory.sums.get() + row * memory.kLine;
    const int64_t first = (place.row + row) * width + place.column;
    if (is_nhwc) {
      T* target = map + first * params.channels + place.channel;
      for (int i = 0; i < place.columns; ++i, target += params.channels) {
        if (!memory.touched[row]) {
          std::fill(target, target + place.channels, T{});
        } else if constexpr (std::is_same_v<T, double>) {
          std::copy(sums + i * kGroup, sums + i * kGroup + place.channels, target);
        } else {
          narrow(sums + i * kGroup, target, place.channels);
        }
      }
    } else if (memory.touched[row]) {
      transpose(sums, kGroup, map + place.channel * pixels + first, pixels, place.columns, place.channels);
    } else {
      for (int i = 0; i < place.channels; ++i) {
        T* const target = map + (place.channel + i) * pixels + first;
        std::fill(target, target + place.columns, T{});
      }
    }
  }
}

// --- all tiles -------------------------------------------------------------------------------------------------------

int64_t tiles_of(int64_t length, int64_t tile) { return (length + tile - 1) / tile; }

// images x groups of channels x tiles of P2..P5, the last one fastest.
struct Tiles {
  const Params& params;
  int64_t groups, in_level[kLevels], in_image = 0;

  explicit Tiles(const Params& params) : params(params), groups(tiles_of(params.channels, kGroup)) {
    for (int level = 0; level < kLevels; ++level) {
      in_level[level] = tiles_of(params.heights[level], kRows) * tiles_of(params.widths[level], kColumns);
      in_image += in_level[level];
    }
  }
  int64_t count() const { return params.batch * groups * in_image; }

  Place at(int64_t index) const {
    Place place{};
    int64_t tile = index % in_image;
    while (tile >= in_level[place.level]) tile -= in_level[place.level++];
    const int64_t across = tiles_of(params.widths[place.level], kColumns);
    place.image = int(index / in_image / groups);
    place.channel = int(index / in_image % groups) * kGroup;
    place.channels = std::min(kGroup, params.channels - place.channel);
    place.row = int(tile / across) * kRows;
    place.rows = std::min(kRows, params.heights[place.level] - place.row);
    place.column = int(tile % across) * kColumns;
    place.columns = std::min(kColumns, params.widths[place.level] - place.column);
    return place;
  }
};

template <typename T, typename Real>
void run(const Params& params, const Pool& pool) {
  const Boxes<Real> boxes(forward_of(params), pool);
  const Tiles tiles(params);
  const int size = params.output_size, count = params.rois_per_image;
  PerSlot<Memory<Real>> memories(pool);
  for_each(pool, tiles.count(), 1, [&](int64_t index, int slot) {
    const Place place = tiles.at(index);
    Memory<Real>& memory = memories.at(slot, size);
    std::fill(memory.touched, memory.touched + kRows, false);
    for (int64_t box = int64_t{place.image} * count, end = box + count; box < end; ++box) {
      if (!boxes.reaches[box].meets(place.level, place.row, place.column, place.rows, place.columns)) continue;
      const T* const grads = static_cast<const T*>(params.grad_output);
      const T* const grad = grads + (box * params.channels + place.channel) * size * size;
      add_box(boxes.all[box], grad, size, place, memory);
    }
    write<T>(params, place, memory);
  });
}

}  // namespace

int run_cpu(const Params& params, const Pool& pool) try {
  if (!is_supported(params)) return 1;
  if (params.features_type == kFloat64) {
    run<double, double>(params, pool);
    return 0;
  }
  switch (params.features_type) {
    case DType::kFloat32: run<float, float>(params, pool); break;
    case DType::kFloat16: run<Half, float>(params, pool); break;
    case DType::kBFloat16: run<BFloat16, float>(params, pool); break;
  }
  return 0;
} catch (const std::bad_alloc&) { return 2; }  // cudaErrorMemoryAllocation

}  // namespace upsnet::roi_align_fpn_backward

UPSNET_CPU_FRONT(roi_align_fpn_backward)
