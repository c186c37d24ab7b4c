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
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

#ifdef __F16C__
#include <immintrin.h>
#endif

#include "common/exports.h"
#include "common/pool.h"
#include "roi_align_fpn/kernel.cuh"
#include "roi_align_fpn/launch.h"

namespace upsnet::roi_align_fpn {
namespace {

constexpr int kLanes = 8;
constexpr int kGroup = 32;  // channels pooled at a time
constexpr int kRun = 32;    // pixels that are packed together
constexpr int kVectors = kGroup / kLanes;

// GCC's and Clang's portable vectors: AVX where there is AVX, two or eight registers elsewhere.
typedef float Vector __attribute__((vector_size(kLanes * sizeof(float))));
typedef int Order __attribute__((vector_size(kLanes * sizeof(int))));

Vector load(const float* source) {
  Vector vector;
  std::memcpy(&vector, source, sizeof vector);
  return vector;
}

void store(float* target, Vector vector) { std::memcpy(target, &vector, sizeof vector); }

#ifdef __clang__
#define UPSNET_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define UPSNET_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Order{__VA_ARGS__})
#endif

// rows[i][j] <-> rows[j][i]: pairs, then quadruples inside each half, then the halves.
void transpose(Vector (&rows)[kLanes]) {
  Vector pairs[kLanes], quads[kLanes];
  for (int i = 0; i < kLanes; i += 2) {
    pairs[i] = UPSNET_SHUFFLE(rows[i], rows[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    pairs[i + 1] = UPSNET_SHUFFLE(rows[i], rows[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < kLanes; i += 4) {
    for (int j = 0; j < 2; ++j) {
      quads[i + 2 * j] = UPSNET_SHUFFLE(pairs[i + j], pairs[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      quads[i + 2 * j + 1] = UPSNET_SHUFFLE(pairs[i + j], pairs[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  }
  for (int i = 0; i < kLanes / 2; ++i) {
    rows[i] = UPSNET_SHUFFLE(quads[i], quads[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    rows[i + 4] = UPSNET_SHUFFLE(quads[i], quads[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

void widen(const float* source, float* target, int count) { std::memcpy(target, source, count * sizeof(float)); }

template <typename T>
void widen(const T* source, float* target, int count) {
  int i = 0;
#ifdef __F16C__  // GCC turns to_float(Half) into scalar code
  if constexpr (std::is_same_v<T, Half>) {
    for (; i + 8 <= count; i += 8) {
      __m128i halves;
      std::memcpy(&halves, source + i, sizeof halves);
      _mm256_storeu_ps(target + i, _mm256_cvtph_ps(halves));
    }
  }
#endif
  for (; i < count; ++i) target[i] = to_float(source[i]);
}

template <typename T>
void narrow(const float* source, T* target, int count) {
  int i = 0;
#ifdef __F16C__
  if constexpr (std::is_same_v<T, Half>) {
    for (; i + 8 <= count; i += 8) {
      const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(source + i), _MM_FROUND_TO_NEAREST_INT);
      std::memcpy(target + i, &halves, sizeof halves);
    }
  }
#endif
  for (; i < count; ++i) target[i] = from_float<T>(source[i]);
}

// target[j * target_pitch + i] = source[i * source_pitch + j], i < rows, j < columns.
void transpose(const float* source, int64_t source_pitch, float* target, int64_t target_pitch, int rows, int columns) {
  int i = 0;
  for (; i + kLanes <= rows; i += kLanes) {
    int j = 0;
    for (; j + kLanes <= columns; j += kLanes) {
      Vector block[kLanes];
      for (int k = 0; k < kLanes; ++k) block[k] = load(source + (i + k) * source_pitch + j);
      transpose(block);
      for (int k = 0; k < kLanes; ++k) store(target + (j + k) * target_pitch + i, block[k]);
    }
    for (; j < columns; ++j) {
      for (int k = i; k < i + kLanes; ++k) target[j * target_pitch + k] = source[k * source_pitch + j];
    }
  }
  for (; i < rows; ++i) {
    for (int j = 0; j < columns; ++j) target[j * target_pitch + i] = source[i * source_pitch + j];
  }
}

int64_t pixels_of(const Params& params, int level) {
  return static_cast<int64_t>(params.heights[level]) * params.widths[level];
}

// The taps of all boxes of an image.
struct Boxes {
  int bins, longest;
  std::vector<int> levels;
  std::vector<Tap> taps;    // [box][rows, columns][bin][longest]
  std::vector<int> counts;  // [box][rows, columns][bin]

  explicit Boxes(const Params& params)
      : bins(params.output_size),
        longest(2 * params.sampling_ratio),
        levels(params.rois_per_image),
        taps(static_cast<size_t>(params.rois_per_image) * 2 * bins * longest),
        counts(static_cast<size_t>(params.rois_per_image) * 2 * bins) {}

  const Tap* taps_of(int box, int line) const { return &taps[(static_cast<size_t>(box) * 2 * bins + line) * longest]; }
  int count_of(int box, int line) const { return counts[static_cast<size_t>(box) * 2 * bins + line]; }

  void find(const Params& params, int image, int index) {
    const float* box = params.rois + 4 * (static_cast<int64_t>(image) * params.rois_per_image + index);
    const int level = level_of(box, params.inclusive != 0);
    const bool finite = is_finite(box);
    levels[index] = level;
    for (int line = 0; line < 2 * bins; ++line) {
      const bool is_column = line >= bins;
      const int axis = is_column ? 0 : 1, bin = is_column ? line - bins : line;
      const int length = is_column ? params.widths[level] : params.heights[level];
      const Extent extent = extent_of(box[axis], box[axis + 2], scale_of(level), bins, params.aligned != 0);
      const size_t place = static_cast<size_t>(index) * 2 * bins + line;
      counts[place] = finite ? bin_taps(extent, bin, params.sampling_ratio, length, &taps[place * longest]) : 0;
    }
  }
};

// A run of kRun pixels of a map, in the order of memory.
struct Run {
  int level;
  int64_t first;
};

// The runs that hold a tap of some box.
std::vector<Run> runs_read(const Params& params, const Boxes& boxes) {
  std::vector<char> marks[kLevels];
  for (int level = 0; level < kLevels; ++level) marks[level].assign(pixels_of(params, level) / kRun + 1, 0);
  const auto each_tap = [&](int box, int first_line, auto visit) {
    for (int line = first_line; line < first_line + boxes.bins; ++line) {
      const Tap* taps = boxes.taps_of(box, line);
      for (int i = 0; i < boxes.count_of(box, line); ++i) visit(int64_t{taps[i].index});
    }
  };
  for (int box = 0; box < params.rois_per_image; ++box) {
    const int level = boxes.levels[box];
    each_tap(box, 0, [&](int64_t row) {
      each_tap(box, boxes.bins,
               [&](int64_t column) { marks[level][(row * params.widths[level] + column) / kRun] = 1; });
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
  } else if constexpr (std::is_same_v<T, float>) {
    transpose(map + first * all + run.first, all, packed, kGroup, channels, pixels);
  } else {
    float wide[kGroup * kRun];
    for (int channel = 0; channel < channels; ++channel) {
      widen(map + (first + channel) * all + run.first, wide + channel * kRun, pixels);
    }
    transpose(wide, kRun, packed, kGroup, channels, pixels);
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
      Vector sum[kVectors] = {};
      for (int y = 0; y < row_count; ++y) {
        const float* line = map + static_cast<int64_t>(rows[y].index) * width * pitch;
        for (int x = 0; x < column_count; ++x) {
          const float* pixel = line + columns[x].index * pitch;
          const float weight = rows[y].weight * columns[x].weight;
          for (int k = 0; k < kVectors; ++k) sum[k] += weight * load(pixel + k * kLanes);
        }
      }
      for (int k = 0; k < kVectors; ++k) store(tile + k * kLanes, sum[k]);
    }
  }
}

// tile [bin][kGroup] -> output [channel][bin]. wide: room for [kGroup][bin].
template <typename T>
void write(const float* tile, int bins, int channels, T* output, float* wide) {
  if constexpr (std::is_same_v<T, float>) {
    transpose(tile, kGroup, output, bins, bins, channels);
  } else {
    transpose(tile, kGroup, wide, bins, bins, channels);
    narrow(wide, output, channels * bins);
  }
}

using Buffer = std::unique_ptr<float[], decltype(&std::free)>;

Buffer buffer_of(size_t floats) {
  constexpr size_t kLine = 64;  // bytes
  void* memory = std::aligned_alloc(kLine, (floats * sizeof(float) + kLine) / kLine * kLine);
  if (memory == nullptr) throw std::bad_alloc();
  return Buffer(static_cast<float*>(memory), &std::free);
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
  const Buffer packed = buffer_of(in_place ? 0 : begins[kLevels]);
  const float* maps[kLevels];
  for (int level = 0; level < kLevels; ++level) {
    maps[level] = in_place ? static_cast<const float*>(params.features[level]) +
                                 image * pixels_of(params, level) * params.channels
                           : packed.get() + begins[level];
  }
  const int pitch = in_place ? params.channels : kGroup, step = pitch;
  struct Tile {
    explicit Tile(int bins) : memory(buffer_of(size_t{2} * bins * kGroup)) {}
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
        write(tile, bins, channels, output + static_cast<int64_t>(first) * bins, tile + bins * kGroup);
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
