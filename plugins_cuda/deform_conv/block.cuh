// What one block of the implicit matrix product does: sample, gather, multiply, write (launch.cu: the whole picture).
#pragma once

#include "deform_conv/kernel.cuh"
#include "deform_conv/tile.cuh"

namespace upsnet::deform_conv {

constexpr int kTileRows = 8, kTileColumns = 16;
static_assert(kTileRows * kTileColumns == kPixels);
constexpr int kTapsAtOnce = 9;  // whose samples are in shared memory together
constexpr int kItems = kPixels * kUnits / kThreads;
#ifdef UPSNET_BEFORE_SM_80
constexpr int kBlocksAtOnce = 1;  // in a multiprocessor: its shared memory holds no more
#else
constexpr int kBlocksAtOnce = 2;
#endif
static_assert(kItems == kHalves, "one unit of 16 bytes is gathered during each half of a step");

struct Problem {
  Params p;
  const void* features;  // NHWC
  const void* weights;   // [groups][output tile][segment][chunk][tap] pieces of Tile::kWeightBytes
  float* partial;        // [splits][batch][out_height][out_width][out_channels] where splits > 1
  int32_t taps;
  int32_t taps_at_once;
  int32_t segment;           // channels that share both groups
  int32_t segments;          // in one group of weights
  int32_t chunks;            // in one segment
  int32_t splits;            // of the chunks
  int32_t split_chunks;      // in one split
  int32_t group_outputs;     // output channels of one group
  int32_t output_tiles;      // in one group
  int32_t tiles_y, tiles_x;  // of pixels, in one image

  UPSNET_HD int32_t steps() const { return segments * chunks * taps; }
};

struct Step {
  int32_t chunk, tap;
};

// What a block makes. In shared memory: no registers are held for it during the main loop.
struct alignas(16) Place {
  int32_t split, group, output_tile, image, top, left;
};

// Blocks of the same pixels follow each other.
__device__ inline Place place_of_block(const Problem& problem) {
  Place place;
  unsigned index = blockIdx.x;
  place.split = index % problem.splits, index /= problem.splits;
  place.output_tile = index % problem.output_tiles, index /= problem.output_tiles;
  place.group = index % problem.p.group, index /= problem.p.group;
  place.left = index % problem.tiles_x * kTileColumns, index /= problem.tiles_x;
  place.top = index % problem.tiles_y * kTileRows;
  place.image = index / problem.tiles_y;
  return place;
}

template <typename T, int kOutputs, bool kAligned>
struct Block {
  using Products = Tile<T, kOutputs>;
  static constexpr int kLanes = Products::kLanes;
  static constexpr int kStageBytes = Products::kPixelBytes + Products::kWeightBytes;
  static constexpr int kWritten = kOutputs * sizeof(T) > 256 ? kOutputs / 2 : kOutputs;  // outputs in shared memory
  static_assert(kWritten == kOutputs || (sizeof(T) == 4 && kWritten % 64 == 0), "what for_each can tell apart");
  static constexpr int kPad = kUnitBytes / sizeof(T);  // between their rows
  struct Corners {
    uint4 unit[4];
  };

  const Problem& problem;
  Place& place;
  Sample* samples;             // [taps_at_once][kPixels]
  unsigned char* stages;       // two of pixels and weights
  int32_t segment, first_tap;  // of the samples

  __device__ Block(const Problem& problem, unsigned char* shared)
      : problem(problem),
        place(*reinterpret_cast<Place*>(shared)),
        samples(reinterpret_cast<Sample*>(shared + sizeof(Place))),
        stages(shared + sizeof(Place) + problem.taps_at_once * kPixels * sizeof(Sample)) {
    if (threadIdx.x == 0) place = place_of_block(problem);
    __syncthreads();
  }

  __device__ unsigned char* pixels(int stage) const { return stages + stage * kStageBytes; }
  __device__ unsigned char* weights(int stage) const { return pixels(stage) + Products::kPixelBytes; }
  __device__ int32_t first_channel() const { return (place.group * problem.segments + segment) * problem.segment; }

  __device__ void compute_samples(int taps) const {
    const Params& p = problem.p;
    const int32_t offset_group = first_channel() / (p.channels / p.offset_group);
    for (int i = threadIdx.x; i < taps * kPixels; i += kThreads) {
      const int32_t row = place.top + i % kPixels / kTileColumns, column = place.left + i % kTileColumns;
      samples[i] = row < p.out_height && column < p.out_width
                       ? sample_of(p, place.image, offset_group, first_tap + i / kPixels, row, column)
                       : Sample{{-1, -1, -1, -1}, {0.0f, 0.0f, 0.0f, 0.0f}};
    }
  }

  __device__ const unsigned char* first_weights() const {
    const int64_t tile = int64_t(place.group) * problem.output_tiles + place.output_tile;
    const int64_t piece = (tile * problem.segments + segment) * problem.chunks * problem.taps + first_tap;
    return static_cast<const unsigned char*>(problem.weights) + piece * Products::kWeightBytes;
  }

  __device__ void fetch_weights(const unsigned char* pieces, int stage, Step step) const {
    const unsigned char* source = pieces + int64_t(step.chunk * problem.taps + step.tap) * Products::kWeightBytes;
    constexpr int kAtOnce = kThreads * kUnitBytes;
    static_assert(Products::kWeightBytes % kAtOnce == 0);
#pragma unroll
    for (int first = 0; first < Products::kWeightBytes; first += kAtOnce) {
      const int i = first + threadIdx.x * kUnitBytes;
      copy_async(weights(stage) + i, source + i);
    }
  }

  __device__ static int pixel_of(int item) { return item * (kThreads / kUnits) + threadIdx.x / kUnits; }
  __device__ static int unit_of_thread() { return threadIdx.x % kUnits; }

  // Four corners of one pixel's sample, one unit of channels; zeros outside the map and past the segment.
  __device__ Corners gather(const T* features, int item, Step step) const {
    const Sample& sample = samples[step.tap * kPixels + pixel_of(item)];
    const Params& p = problem.p;
    const int32_t within = step.chunk * Products::kChunk + unit_of_thread() * kLanes;
    Corners corners;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int32_t pixel = sample.pixel[i];
      corners.unit[i] = make_uint4(0, 0, 0, 0);
      if (pixel < 0 || within >= problem.segment) continue;
      const T* source = features + (int64_t(pixel) * p.channels + within);
      if constexpr (kAligned) {
        corners.unit[i] = __ldg(reinterpret_cast<const uint4*>(source));
      } else {
        T values[kLanes];
#pragma unroll
        for (int lane = 0; lane < kLanes; ++lane) {
          values[lane] = within + lane < problem.segment ? source[lane] : from_float<T>(0.0f);
        }
        memcpy(&corners.unit[i], values, kUnitBytes);
      }
    }
    return corners;
  }

  __device__ void blend_and_store(int stage, int item, Step step, const Corners& corners) const {
    const Sample& sample = samples[step.tap * kPixels + pixel_of(item)];
    T values[4][kLanes];
    memcpy(values, corners.unit, sizeof values);
    float blended[kLanes];
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      blended[lane] = blend(sample.weight, to_float(values[0][lane]), to_float(values[1][lane]),
                            to_float(values[2][lane]), to_float(values[3][lane]));
    }
    Products::store(pixels(stage), pixel_of(item), unit_of_thread(), blended);
  }

  // All steps of `taps` taps from first_tap on, whose samples are there, over the chunks of this split.
  __device__ void accumulate(Products& products, int taps) const {
    Step next{place.split * problem.split_chunks, 0};
    const int left_over = problem.chunks - next.chunk;
    const int steps = (left_over < problem.split_chunks ? left_over : problem.split_chunks) * taps;
    const Params& p = problem.p;
    const T* features = static_cast<const T*>(problem.features) +
                        (int64_t(place.image) * p.height * p.width * p.channels + first_channel());
    const unsigned char* pieces = first_weights();
    fetch_weights(pieces, 0, next);
#pragma unroll
    for (int item = 0; item < kItems; ++item) blend_and_store(0, item, next, gather(features, item, next));
    wait_for_copies();
    __syncthreads();
    for (int left = steps, stage = 0; left > 0; --left, stage ^= 1) {
      const bool more = left > 1;
      if (++next.tap == taps) next = {next.chunk + 1, 0};
      if (more) fetch_weights(pieces, stage ^ 1, next);
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        Corners corners;
        if (more) corners = gather(features, half, next);
        products.multiply(pixels(stage), weights(stage), half);
        if (more) blend_and_store(stage ^ 1, half, next, corners);
      }
      wait_for_copies();
      __syncthreads();
    }
  }

  // Sums + bias, rounded, through shared memory to the output in runs of its layout.
  __device__ void write(const Products& products) const {
#pragma unroll 1  // both rounds side by side would spill registers
    for (int begin = 0; begin < kOutputs; begin += kWritten) {
      if (begin > 0) __syncthreads();
      write_part(products, begin);
    }
  }

  __device__ __forceinline__ void write_part(const Products& products, int begin) const {
    const Params& p = problem.p;
    const bool by_pixel = p.x_layout == Layout::kNHWC;
    const int pixel_stride = by_pixel ? kWritten + kPad : 1, output_stride = by_pixel ? 1 : kPixels + kPad;
    T* staged = reinterpret_cast<T*>(samples);
    const int32_t first = place.output_tile * kOutputs + begin, channel = place.group * problem.group_outputs + first;
    const auto stage = [&](int pixel, int any, float sum) {
      const int output = any - begin;
      const float bias = p.bias && first + output < problem.group_outputs ? p.bias[channel + output] : 0.0f;
      staged[pixel * pixel_stride + output * output_stride] = from_float<T>(sum + bias);
    };
    products.for_each(stage, begin, begin + kWritten);
    __syncthreads();
    const int64_t plane = int64_t(p.out_height) * p.out_width;
    T* target = static_cast<T*>(p.output) + place.image * plane * p.out_channels;
    for (int i = threadIdx.x; i < kPixels * kWritten; i += kThreads) {
      const int pixel = by_pixel ? i / kWritten : i % kPixels, output = by_pixel ? i % kWritten : i / kPixels;
      const int32_t row = place.top + pixel / kTileColumns, column = place.left + pixel % kTileColumns;
      if (row >= p.out_height || column >= p.out_width || first + output >= problem.group_outputs) continue;
      const int64_t at = int64_t(row) * p.out_width + column;
      target[by_pixel ? at * p.out_channels + channel + output : (channel + output) * plane + at] =
          staged[pixel * pixel_stride + output * output_stride];
    }
  }

  // The sums of one split, for add_splits_kernel. Four lanes write a whole sector.
  __device__ void write_partial(const Products& products) const {
    const Params& p = problem.p;
    const int64_t image = (int64_t(place.split) * p.batch + place.image) * p.out_height;
    const int32_t first = place.output_tile * kOutputs, channel = place.group * problem.group_outputs + first;
    products.for_each([&](int pixel, int output, float sum) {
      const int32_t row = place.top + pixel / kTileColumns, column = place.left + pixel % kTileColumns;
      if (row >= p.out_height || column >= p.out_width || first + output >= problem.group_outputs) return;
      problem.partial[((image + row) * p.out_width + column) * p.out_channels + channel + output] = sum;
    });
  }
};

}  // namespace upsnet::deform_conv
