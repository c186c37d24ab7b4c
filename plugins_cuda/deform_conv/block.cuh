// What the blocks of the implicit matrix product have in common, whatever their type: where they stand, what they
// sample, gather and write (launch.cu: the whole picture; product.cuh: how they multiply).
#pragma once

#include "deform_conv/kernel.cuh"
#include "deform_conv/tile.cuh"

namespace upsnet::deform_conv {

constexpr int kTileRows = 8, kTileColumns = 16;
static_assert(kTileRows * kTileColumns == kPixels);
constexpr int kTapsAtOnce = 9;  // whose samples are in shared memory together

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
  int32_t splits;            // of the steps
  int32_t group_outputs;     // output channels of one group
  int32_t output_tiles;      // in one group
  int32_t tiles_y, tiles_x;  // of pixels, in one image
  bool writes_units;         // of 16 bytes: none straddles two rows of the output, or two groups' channels

  UPSNET_HD int32_t steps() const { return segments * chunks * taps; }
};

// A step, whose tap counts from the first of those whose samples are there.
struct Step {
  int32_t chunk, tap;
  const unsigned char* features;  // this thread's unit of the chunk, in pixel 0

  // The taps of a chunk follow each other: their corners are the same pixels.
  __device__ void advance(int32_t taps) {
    if (++tap == taps) tap = 0, ++chunk, features += kUnits * kUnitBytes;
  }
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

// first + index * pitch, in one instruction.
__device__ __forceinline__ const unsigned char* at(const unsigned char* first, uint32_t index, uint32_t pitch) {
#ifdef __CUDACC__
  uint64_t bytes;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(bytes) : "r"(index), "r"(pitch));
  return first + bytes;
#else
  return first + uint64_t{index} * pitch;
#endif
}

template <typename T, int kOutputs, bool kAligned>
struct Block {
  using Products = Tile<T, kOutputs>;
  static constexpr int kThreads = Products::kThreads;
  static constexpr int kLanes = Products::kLanes;
  static constexpr int kStageBytes = Products::kPixelBytes + Products::kWeightBytes;
  static constexpr int kWritten = kOutputs * sizeof(T) > 256 ? kOutputs / 2 : kOutputs;  // outputs in shared memory
  static_assert(kWritten == kOutputs || kWritten % (sizeof(T) == 4 ? 64 : 128) == 0, "what for_each can tell apart");
  static constexpr int kPad = kUnitBytes / sizeof(T);  // between their rows
  struct Corners {
    uint4 unit[4];
  };

  const Problem& problem;
  Place& place;
  int4* corners;               // [taps_at_once][kPixels]: Sample::pixel
  float4* blends;              // [taps_at_once][kPixels]: Sample::weight
  unsigned char* stages;       // two of pixels and weights
  int32_t segment, first_tap;  // of the samples

  __device__ Block(const Problem& problem, unsigned char* shared)
      : problem(problem),
        place(*reinterpret_cast<Place*>(shared)),
        corners(reinterpret_cast<int4*>(shared + sizeof(Place))),
        blends(reinterpret_cast<float4*>(corners + problem.taps_at_once * kPixels)),
        stages(reinterpret_cast<unsigned char*>(blends + problem.taps_at_once * kPixels)) {
    if (threadIdx.x == 0) place = place_of_block(problem);
    __syncthreads();
  }

  __device__ unsigned char* pixels(int stage) const { return stages + stage * kStageBytes; }
  __device__ unsigned char* weights(int stage) const { return pixels(stage) + Products::kPixelBytes; }
  __device__ int32_t first_channel() const { return (place.group * problem.segments + segment) * problem.segment; }

  // Steps of `taps` taps that this split makes: from the first up to the last.
  __device__ int32_t begin_of_split(int taps, int32_t split) const {
    return int32_t(int64_t{problem.chunks} * taps * split / problem.splits);
  }

  // Finds where a pixel of the block samples for a tap.
  __device__ void compute_sample(int tap, int pixel) const {
    const Params& p = problem.p;
    const int32_t row = place.top + pixel / kTileColumns, column = place.left + pixel % kTileColumns;
    const int32_t offset_group = first_channel() / (p.channels / p.offset_group);
    // Pixels past the output sample as its last ones do, but nothing: no branch keeps the loads from overlapping.
    const bool exists = row < p.out_height && column < p.out_width;
    const Sample sample = sample_of(p, place.image, offset_group, first_tap + tap, min(row, p.out_height - 1),
                                    min(column, p.out_width - 1));
    const int4 found = make_int4(sample.pixel[0], sample.pixel[1], sample.pixel[2], sample.pixel[3]);
    corners[tap * kPixels + pixel] = exists ? found : make_int4(-1, -1, -1, -1);
    blends[tap * kPixels + pixel] = make_float4(sample.weight[0], sample.weight[1], sample.weight[2], sample.weight[3]);
  }

  // This thread's unit of the first piece of weights.
  __device__ const unsigned char* first_weights() const {
    const int64_t tile = int64_t(place.group) * problem.output_tiles + place.output_tile;
    const int64_t piece = (tile * problem.segments + segment) * problem.chunks * problem.taps + first_tap;
    return static_cast<const unsigned char*>(problem.weights) + piece * Products::kWeightBytes +
           threadIdx.x * kUnitBytes;
  }

  __device__ void fetch_weights(const unsigned char* first, int stage, const Step& step) const {
    const unsigned char* source = at(first, step.chunk * problem.taps + step.tap, Products::kWeightBytes);
    unsigned char* target = weights(stage) + threadIdx.x * kUnitBytes;
    constexpr int kAtOnce = kThreads * kUnitBytes;
    static_assert(Products::kWeightBytes % kAtOnce == 0);
#pragma unroll
    for (int i = 0; i < Products::kWeightBytes; i += kAtOnce) copy_async(target + i, source + i);
  }

  // Steps of `taps` taps are numbered chunk by chunk.
  __device__ Step step_of(int32_t number, int32_t taps) const {
    const Params& p = problem.p;
    const int32_t chunk = number / taps;
    const int64_t first = int64_t(place.image) * p.height * p.width * p.channels + first_channel();
    const T* features = static_cast<const T*>(problem.features) + (first + int64_t{chunk} * Products::kChunk);
    return {chunk, number % taps, reinterpret_cast<const unsigned char*>(features) + Products::unit() * kUnitBytes};
  }

  // Four corners of one pixel's sample, one unit of channels. `whole`: all corners are on the map, and the chunk ends
  // in the segment. Otherwise zeros stand for what lies outside: it must not be multiplied, as infinity times 0 is not
  // 0.
  __device__ Corners gather(int item, const Step& step, bool whole) const {
    const int4 found = corners[step.tap * kPixels + Products::pixel_of(item)];
    const int32_t pixel[4] = {found.x, found.y, found.z, found.w};
    const uint32_t pitch = uint32_t(problem.p.channels) * uint32_t(sizeof(T));
    Corners read;
    if (kAligned && whole) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        read.unit[i] = __ldg(reinterpret_cast<const uint4*>(at(step.features, pixel[i], pitch)));
      return read;
    }
    const int32_t left = problem.segment - step.chunk * Products::kChunk - Products::unit() * kLanes;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      read.unit[i] = make_uint4(0, 0, 0, 0);
      if (pixel[i] < 0 || left <= 0) continue;
      const unsigned char* source = at(step.features, pixel[i], pitch);
      if constexpr (kAligned) {
        read.unit[i] = __ldg(reinterpret_cast<const uint4*>(source));
      } else {
        T values[kLanes];
#pragma unroll
        for (int lane = 0; lane < kLanes; ++lane) {
          values[lane] = lane < left ? __ldg(reinterpret_cast<const T*>(source) + lane) : from_float<T>(0.0f);
        }
        memcpy(&read.unit[i], values, kUnitBytes);
      }
    }
    return read;
  }

  __device__ void blend_unit(float (&blended)[kLanes], int item, const Step& step, const Corners& read) const {
    const float4 blend_of = blends[step.tap * kPixels + Products::pixel_of(item)];
    const float weight[4] = {blend_of.x, blend_of.y, blend_of.z, blend_of.w};
    T values[4][kLanes];
    memcpy(values, read.unit, sizeof values);
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      blended[lane] = blend(weight, to_float(values[0][lane]), to_float(values[1][lane]), to_float(values[2][lane]),
                            to_float(values[3][lane]));
    }
  }

  // Sums + bias, rounded, through shared memory to the output in runs of its layout.
  __device__ void write(const Products& products) const {
    if (problem.p.x_layout == Layout::kNHWC) {
      write_in<true>(products);
    } else {
      write_in<false>(products);
    }
  }

  template <bool kByPixel>
  __device__ void write_in(const Products& products) const {
    const Params& p = problem.p;
    constexpr int kPixelStride = kByPixel ? kWritten + kPad : 1, kOutputStride = kByPixel ? 1 : kPixels + kPad;
    T* staged = reinterpret_cast<T*>(corners);
#pragma unroll 1  // both rounds side by side would spill registers
    for (int begin = 0; begin < kOutputs; begin += kWritten) {
      const int32_t first = place.output_tile * kOutputs + begin, channel = place.group * problem.group_outputs + first;
      const auto stage = [&](int pixel, int any, float sum) {
        const int output = any - begin;
        const float bias = p.bias && first + output < problem.group_outputs ? p.bias[channel + output] : 0.0f;
        staged[pixel * kPixelStride + output * kOutputStride] = from_float<T>(sum + bias);
      };
      __syncthreads();
      products.for_each(stage, begin, begin + kWritten);
      __syncthreads();
      if (problem.writes_units) {
        copy_out<kByPixel, uint4>(staged, first, channel);
      } else {
        copy_out<kByPixel, T>(staged, first, channel);
      }
    }
  }

  // Copies staged outputs, as many at once as a Unit holds.
  template <bool kByPixel, typename Unit>
  __device__ __forceinline__ void copy_out(const T* staged, int32_t first, int32_t channel) const {
    constexpr int kAtOnce = sizeof(Unit) / sizeof(T), kRuns = (kByPixel ? kWritten : kPixels) / kAtOnce;
    constexpr int kPitch = (kByPixel ? kWritten : kPixels) + kPad;
    const Params& p = problem.p;
    const int64_t plane = int64_t(p.out_height) * p.out_width;
    T* target = static_cast<T*>(p.output) + place.image * plane * p.out_channels;
#pragma unroll 1
    for (int i = threadIdx.x; i < kPixels * kWritten / kAtOnce; i += kThreads) {
      const int line = i / kRuns, within = i % kRuns * kAtOnce;
      const int pixel = kByPixel ? line : within, output = kByPixel ? within : line;
      const int32_t row = place.top + pixel / kTileColumns, column = place.left + pixel % kTileColumns;
      if (row >= p.out_height || column >= p.out_width || first + output >= problem.group_outputs) continue;
      const int64_t at = int64_t(row) * p.out_width + column;
      T* to = target + (kByPixel ? at * p.out_channels + channel + output : (channel + output) * plane + at);
      *reinterpret_cast<Unit*>(to) = *reinterpret_cast<const Unit*>(staged + line * kPitch + within);
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
