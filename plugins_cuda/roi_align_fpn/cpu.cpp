// RoIAlign over P2..P5 on a CPU.
//
// A bin's taps (kernel.cuh) are scattered pixels, so the loop that fills vector registers is the one over channels: the
// maps must be channels-last. Others are packed first, kGroup channels at a time, into one image's float buffer
// [pixel][kGroup] (11 MB for P2..P5 of 800 x 1344: it stays in the last-level cache, whereas a transposed copy of all
// channels, 91 MB, would go to memory and back). Packing also widens half types, and only touches the runs of pixels
// that some box reads. Then every box sums its bins over the group, kGroup / 8 AVX registers at a time, and its
// [bin][channel] tile is transposed into the output. float channels-last maps are read where they are.
//
// Floor, 1000 boxes x 256 channels x 7 x 7, float NCHW: the maps once (91 MB) and the output once (50 MB), 14 ms at
// 10 GB/s a core; 4 to 16 multiply-adds for each output, about 5 ms of a 3 GHz core with AVX2.
#include <algorithm>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

#include "common/buffer.h"
#include "common/exports.h"
#include "common/pool.h"
#include "common/transpose.h"
#include "roi_align_fpn/kernel.cuh"
#include "roi_align_fpn/launch.h"

namespace upsnet::roi_align_fpn {
namespace {

constexpr int kGroup = 32;  // channels pooled at a time
constexpr int kRun = 32;    // pixels that are packed together
constexpr int kVectors = kGroup / kOctet;

int64_t pixels_of(const Params& params, int level) {
  return static_cast<int64_t>(params.heights[level]) * params.widths[level];
}

// The taps of all boxes of an image.
struct Boxes {
  int bins, room;
  std::vector<int> levels;
  std::unique_ptr<Tap[]> taps;  // [box][rows, columns][room], the most of which is never touched
  std::vector<Line> lines;      // [box][rows, columns][bin]

  explicit Boxes(const Params& params)
      : bins(params.output_size),
        room(taps_of_direction(params)),
        levels(params.rois_per_image),
        taps(new Tap[static_cast<size_t>(params.rois_per_image) * 2 * room]),
        lines(static_cast<size_t>(params.rois_per_image) * 2 * bins) {}

  Tap* direction(int box, int line) const { return &taps[(static_cast<size_t>(box) * 2 + (line >= bins)) * room]; }
  const Line& line_of(int box, int line) const { return lines[static_cast<size_t>(box) * 2 * bins + line]; }
  const Tap* taps_of(int box, int line) const { return direction(box, line) + line_of(box, line).first; }
  int count_of(int box, int line) const { return line_of(box, line).count; }

  // visit(row or column) for every tap of the bins from a line on.
  template <typename Visit>
  void each_tap(int box, int first_line, const Visit& visit) const {
    for (int line = first_line; line < first_line + bins; ++line) {
      for (int i = 0; i < count_of(box, line); ++i) visit(taps_of(box, line)[i].index);
    }
  }

  void find(const Params& params, int image, int index) {
    const float* box = params.rois + 4 * (static_cast<int64_t>(image) * params.rois_per_image + index);
    const int level = level_of(box, params.inclusive != 0, params.rounded_levels != 0);
    levels[index] = level;
    for (int line = 0; line < 2 * bins; ++line) {
      const bool is_column = line >= bins;
      const int length = is_column ? params.widths[level] : params.heights[level];
      lines[static_cast<size_t>(index) * 2 * bins + line] =
          find_line(params, box, level, is_column, line % bins, length, direction(index, line));
    }
  }
};

// A run of kRun pixels of a map, in the order of memory.
struct Run {
  int level;
  int64_t first;
};

// The runs between the first and the last tap of some box in one of its rows.
std::vector<Run> runs_read(const Params& params, const Boxes& boxes) {
  std::vector<char> marks[kLevels];
  for (int level = 0; level < kLevels; ++level) marks[level].assign(pixels_of(params, level) / kRun + 1, 0);
  for (int box = 0; box < params.rois_per_image; ++box) {
    const int level = boxes.levels[box];
    int first = INT32_MAX, last = -1;  // columns
    boxes.each_tap(box, boxes.bins,
                   [&](int column) { first = std::min(first, column), last = std::max(last, column); });
    if (last < 0) continue;
    int64_t marked = -1;  // neighbouring bins share rows
    boxes.each_tap(box, 0, [&](int64_t row) {
      if (row == marked) return;
      const int64_t line = row * params.widths[level];
      const auto begin = marks[level].begin() + (line + first) / kRun,
                 end = marks[level].begin() + (line + last) / kRun;
      std::fill(begin, end + 1, 1);
      marked = row;
    });
  }
  std::vector<Run> runs;
  for (int level = 0; level < kLevels; ++level) {
    for (size_t run = 0; run < marks[level].size(); ++run) {
      if (marks[level][run]) runs.push_back({level, static_cast<int64_t>(run) * kRun});
    }
  }
  return runs;
}

// kGroup channels of one run, from `first` on, as float [pixel][kGroup]; zeros where there are no more channels.
template <typename T>
void pack(const Params& params, int image, Run run, int first, float* packed) {
  const int channels = std::min(kGroup, params.channels - first);
  const int64_t all = pixels_of(params, run.level);
  const int pixels = static_cast<int>(std::min<int64_t>(kRun, all - run.first));
  const T* map = static_cast<const T*>(params.features[run.level]) + image * all * params.channels;
  if (params.features_layout == Layout::kNHWC) {
    for (int pixel = 0; pixel < pixels; ++pixel) {
      widen(map + (run.first + pixel) * params.channels + first, packed + pixel * kGroup, channels);
    }
  } else {
    transpose(map + first * all + run.first, all, packed, kGroup, channels, pixels);
  }
  for (int pixel = 0; channels < kGroup && pixel < pixels; ++pixel) {
    std::fill(packed + pixel * kGroup + channels, packed + (pixel + 1) * kGroup, 0.0f);
  }
}

// One box, kGroup channels -> tile [bin][kGroup]. map: of the box's level at the first channel, `pitch` floats a pixel.
void gather(const Boxes& boxes, int box, const float* map, int64_t pitch, int width, float* tile) {
  for (int row = 0; row < boxes.bins; ++row) {
    const Tap* rows = boxes.taps_of(box, row);
    const int row_count = boxes.count_of(box, row);
    for (int column = 0; column < boxes.bins; ++column, tile += kGroup) {
      const Tap* columns = boxes.taps_of(box, boxes.bins + column);
      const int column_count = boxes.count_of(box, boxes.bins + column);
      Octet sum[kVectors] = {};
      for (int y = 0; y < row_count; ++y) {
        const float* line = map + static_cast<int64_t>(rows[y].index) * width * pitch;
        for (int x = 0; x < column_count; ++x) {
          const float* pixel = line + columns[x].index * pitch;
          const float weight = rows[y].weight * columns[x].weight;
          for (int k = 0; k < kVectors; ++k) sum[k] += weight * load_octet(pixel + k * kOctet);
        }
      }
      for (int k = 0; k < kVectors; ++k) store_octet(tile + k * kOctet, sum[k]);
    }
  }
}

template <typename T>
void pool_image(const Params& params, int image, const Pool& pool) {
  const int bins = params.output_size * params.output_size, count = params.rois_per_image;
  const bool in_place =
      std::is_same_v<T, float> && params.features_layout == Layout::kNHWC && params.channels % kGroup == 0;
  Boxes boxes(params);
  for_each(pool, count, 64, [&](int64_t box, int) { boxes.find(params, image, int(box)); });

  const std::vector<Run> runs = in_place ? std::vector<Run>() : runs_read(params, boxes);
  int64_t begins[kLevels + 1] = {};
  for (int level = 0; level < kLevels; ++level) begins[level + 1] = begins[level] + pixels_of(params, level) * kGroup;
  const Buffer packed = allocate(in_place ? 0 : begins[kLevels]);
  const float* maps[kLevels];
  for (int level = 0; level < kLevels; ++level) {
    maps[level] = in_place ? static_cast<const float*>(params.features[level]) +
                                 image * pixels_of(params, level) * params.channels
                           : packed.get() + begins[level];
  }
  const int pitch = in_place ? params.channels : kGroup, step = pitch;
  struct Tile {
    explicit Tile(int bins) : memory(allocate(int64_t{bins} * kGroup)) {}
    Buffer memory;
  };
  PerSlot<Tile> tiles(pool);
  for (int packed_first = 0; packed_first < params.channels; packed_first += step) {
    for_each(pool, runs.size(), 16, [&](int64_t i, int) {
      pack<T>(params, image, runs[i], packed_first, packed.get() + begins[runs[i].level] + runs[i].first * kGroup);
    });
    for_each(pool, count, 4, [&](int64_t box, int slot) {
      float* tile = tiles.at(slot, bins).memory.get();
      const int level = boxes.levels[box];
      T* output = static_cast<T*>(params.output) + (int64_t{image} * count + box) * params.channels * bins;
      for (int first = packed_first; first < std::min(packed_first + step, params.channels); first += kGroup) {
        gather(boxes, int(box), maps[level] + (first - packed_first), pitch, params.widths[level], tile);
        const int channels = std::min(kGroup, params.channels - first);
        transpose(tile, kGroup, output + static_cast<int64_t>(first) * bins, bins, bins, channels);
      }
    });
  }
}

template <typename T>
void pool_all(const Params& params, const Pool& pool) {
  for (int image = 0; image < params.batch; ++image) pool_image<T>(params, image, pool);
}

}  // namespace

int run_cpu(const Params& params, const Pool& pool) try {
  if (!is_supported(params)) return 1;
  if (params.rois_per_image == 0 || params.channels == 0) return 0;
  switch (params.features_type) {
    case DType::kFloat32: pool_all<float>(params, pool); break;
    case DType::kFloat16: pool_all<Half>(params, pool); break;
    case DType::kBFloat16: pool_all<BFloat16>(params, pool); break;
  }
  return 0;
} catch (const std::bad_alloc&) { return 2; }  // cudaErrorMemoryAllocation

}  // namespace upsnet::roi_align_fpn

UPSNET_CPU_FRONT(roi_align_fpn)
