// Deformable convolution as an implicit matrix product: [pixels] x [taps * channels] by [taps * channels] x [outputs],
// whose left factor (torchvision's column buffer, 310 MB at the size below) exists only as tiles in shared memory.
//
// A block makes 8 x 16 output pixels x 64 or 128 output channels. Once for all channels it computes where each of its
// pixels' taps sample (corners and weights, in float, to shared memory). Then, step by step (a step is a chunk of 64
// bytes of channels of one tap), it gathers the four corners from NHWC rows in 16-byte loads, blends them in float,
// rounds to the features' type and multiplies by the weights' chunk on the matrix units (tile.cuh). Steps overlap:
// while one is multiplied, the corners of the next are on their way to registers and its weights (repacked in the
// workspace, so that a chunk is one contiguous piece) to shared memory. The taps of a chunk follow each other, and
// pixels are a square rather than a row, so that corners are found in L1 again: 9 taps x 4 corners read a pixel up to
// 36 times. NCHW inputs are first transposed into the workspace.
//
// Floor at 256 -> 128 channels, 3x3, 200 x 336, fp16: 39.6 GFLOP (50 us at an H200's 790 TFLOP/s); 34 MB in and 17 MB
// out, 5 MB of offsets (12 us at 4.8 TB/s; NCHW: 68 MB more, 14 us). The gather itself: 1.24 GB of corners through L1
// (44 us at 128 bytes a clock and multiprocessor) and 155 M samples x 8 instructions (45 us).
#include <algorithm>

#include "common/cuda.h"
#include "common/exports.h"
#include "common/transpose.cuh"
#include "deform_conv/kernel.cuh"
#include "deform_conv/tile.cuh"

namespace upsnet::deform_conv {
namespace {

constexpr int kTileRows = 8, kTileColumns = 16;
static_assert(kTileRows * kTileColumns == kPixels);
constexpr int kTapsAtOnce = 9;  // whose samples are in shared memory together
constexpr int kItems = kPixels * kUnits / kThreads;
static_assert(kItems == kHalves, "one unit of 16 bytes is gathered during each half of a step");

struct Problem {
  Params p;
  const void* features;  // NHWC
  const void* weights;   // [groups][output tile][segment][chunk][tap] pieces of Tile::kWeightBytes
  int32_t taps;
  int32_t taps_at_once;
  int32_t segment;            // channels that share both groups
  int32_t segments;           // in one group of weights
  int32_t chunks;             // in one segment
  int32_t group_outputs;      // output channels of one group
  int32_t output_tiles;       // in one group
  int32_t tiles_y, tiles_x;   // of pixels, in one image

  UPSNET_HD int32_t steps() const { return segments * chunks * taps; }
};

struct Step { int32_t chunk, tap; };

// What a block makes. In shared memory: no registers are held for it during the main loop.
struct alignas(16) Place { int32_t group, output_tile, image, top, left; };

// Blocks of the same pixels follow each other.
__device__ inline Place place_of_block(const Problem& problem) {
  Place place;
  unsigned index = blockIdx.x;
  place.output_tile = index % problem.output_tiles, index /= problem.output_tiles;
  place.group = index % problem.p.groups, index /= problem.p.groups;
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
  struct Corners { uint4 unit[4]; };

  const Problem& problem;
  Place& place;
  Sample* samples;            // [taps_at_once][kPixels]
  unsigned char* stages;      // two of pixels and weights
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
    const int32_t offset_group = first_channel() / (p.channels / p.offset_groups);
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
    for (int i = threadIdx.x * kUnitBytes; i < Products::kWeightBytes; i += kThreads * kUnitBytes) {
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

  // All steps of `taps` taps from first_tap on, whose samples are there.
  __device__ void accumulate(Products& products, int taps) const {
    const int steps = problem.chunks * taps;
    const Params& p = problem.p;
    const T* features = static_cast<const T*>(problem.features) +
                        (int64_t(place.image) * p.height * p.width * p.channels + first_channel());
    const unsigned char* pieces = first_weights();
    Step next{0, 0};
    fetch_weights(pieces, 0, next);
#pragma unroll
    for (int item = 0; item < kItems; ++item) blend_and_store(0, item, next, gather(features, item, next));
    wait_for_copies();
    __syncthreads();
    for (int i = 0; i < steps; ++i) {
      const int stage = i & 1;
      const bool more = i + 1 < steps;
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
    const Params& p = problem.p;
    constexpr int kPad = kUnitBytes / sizeof(T);
    const bool by_pixel = p.layout == Layout::kNHWC;
    const int pixel_stride = by_pixel ? kOutputs + kPad : 1, output_stride = by_pixel ? 1 : kPixels + kPad;
    T* staged = reinterpret_cast<T*>(samples);
    const int32_t first = place.output_tile * kOutputs, channel = place.group * problem.group_outputs + first;
    products.for_each([&](int pixel, int output, float sum) {
      const float bias = p.bias && first + output < problem.group_outputs ? p.bias[channel + output] : 0.0f;
      staged[pixel * pixel_stride + output * output_stride] = from_float<T>(sum + bias);
    });
    __syncthreads();
    const int64_t plane = int64_t(p.out_height) * p.out_width;
    T* target = static_cast<T*>(p.output) + place.image * plane * p.out_channels;
    for (int i = threadIdx.x; i < kPixels * kOutputs; i += kThreads) {
      const int pixel = by_pixel ? i / kOutputs : i % kPixels, output = by_pixel ? i % kOutputs : i / kPixels;
      const int32_t row = place.top + pixel / kTileColumns, column = place.left + pixel % kTileColumns;
      if (row >= p.out_height || column >= p.out_width || first + output >= problem.group_outputs) continue;
      const int64_t place = int64_t(row) * p.out_width + column;
      target[by_pixel ? place * p.out_channels + channel + output : (channel + output) * plane + place] =
          staged[pixel * pixel_stride + output * output_stride];
    }
  }
};

template <typename T, int kOutputs, bool kAligned>
__global__ void __launch_bounds__(kThreads, 2) deform_conv_kernel(const Problem problem) {
  UPSNET_DYNAMIC_SHARED(shared);
  Block<T, kOutputs, kAligned> block(problem, shared);
  Tile<T, kOutputs> products;
  for (block.segment = 0; block.segment < problem.segments; ++block.segment) {
    for (block.first_tap = 0; block.first_tap < problem.taps; block.first_tap += problem.taps_at_once) {
      const int left_over = problem.taps - block.first_tap;
      const int taps = left_over < problem.taps_at_once ? left_over : problem.taps_at_once;
      block.compute_samples(taps);
      __syncthreads();
      block.accumulate(products, taps);
    }
  }
  block.write(products);
}

// weight [out_channels, channels / groups, taps] -> the order in which deform_conv_kernel reads; ragged ends are zero.
template <typename T, int kOutputs>
__global__ void __launch_bounds__(kThreads) pack_weights_kernel(const Problem problem, T* __restrict__ packed) {
  using Products = Tile<T, kOutputs>;
  constexpr int kPiece = kOutputs * Products::kChunk;
  const T* weight = static_cast<const T*>(problem.p.weight);
  const int64_t total = int64_t(problem.p.groups) * problem.output_tiles * problem.steps() * kPiece;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < total; i += int64_t(gridDim.x) * kThreads) {
    const int32_t within = i % kPiece, channel_in_chunk = within % Products::kChunk;
    int64_t piece = i / kPiece;
    const int32_t tap = piece % problem.taps;
    piece /= problem.taps;
    const int32_t in_segment = piece % problem.chunks * Products::kChunk + channel_in_chunk;
    piece /= problem.chunks;
    const int32_t segment = piece % problem.segments;
    piece /= problem.segments;
    const int32_t output = piece % problem.output_tiles * kOutputs + within / Products::kChunk;
    const int64_t group = piece / problem.output_tiles;
    T value = from_float<T>(0.0f);
    if (in_segment < problem.segment && output < problem.group_outputs) {
      const int64_t channel = int64_t(segment) * problem.segment + in_segment;
      const int64_t row = (group * problem.group_outputs + output) * problem.segments * problem.segment + channel;
      value = weight[row * problem.taps + tap];
    }
    packed[i - within + Products::weight_index(within / Products::kChunk, channel_in_chunk)] = value;
  }
}

int32_t ceil_divide(int32_t a, int32_t b) { return (a + b - 1) / b; }

// Few output channels take the narrower tile.
int32_t tile_outputs(const Params& p) { return p.out_channels / p.groups <= 64 ? 64 : 128; }

Problem plan(const Params& p) {
  Problem problem{};
  const int32_t chunk = kUnits * kUnitBytes / int32_t(element_size(p.type));
  problem.p = p;
  problem.taps = p.kernel_h * p.kernel_w;
  problem.taps_at_once = problem.taps < kTapsAtOnce ? problem.taps : kTapsAtOnce;
  problem.segment = segment_channels(p);
  problem.segments = p.channels / p.groups / problem.segment;
  problem.chunks = ceil_divide(problem.segment, chunk);
  problem.group_outputs = p.out_channels / p.groups;
  problem.output_tiles = ceil_divide(problem.group_outputs, tile_outputs(p));
  problem.tiles_y = ceil_divide(p.out_height, kTileRows);
  problem.tiles_x = ceil_divide(p.out_width, kTileColumns);
  return problem;
}

size_t packed_bytes(const Problem& problem) {
  const size_t pieces = size_t(problem.p.groups) * problem.output_tiles * problem.steps();
  return aligned(pieces * tile_outputs(problem.p) * kUnits * kUnitBytes);
}

template <typename T, int kOutputs, bool kAligned>
cudaError_t multiply(const Problem& problem, cudaStream_t stream) {
  using Products = Tile<T, kOutputs>;
  constexpr size_t kPad = kUnitBytes / sizeof(T);
  const int64_t blocks = int64_t(problem.p.batch) * problem.tiles_y * problem.tiles_x * problem.p.groups *
                         problem.output_tiles;
  if (blocks > INT32_MAX) return cudaErrorInvalidValue;
  const size_t stages = 2 * (Products::kPixelBytes + Products::kWeightBytes);
  const size_t work = problem.taps_at_once * kPixels * sizeof(Sample) + stages;
  const size_t by_pixel = kPixels * (kOutputs + kPad) * sizeof(T), by_output = kOutputs * (kPixels + kPad) * sizeof(T);
  const size_t result = problem.p.layout == Layout::kNHWC ? by_pixel : by_output;
  return launch_kernel(deform_conv_kernel<T, kOutputs, kAligned>, dim3(unsigned(blocks)), dim3(kThreads),
                       sizeof(Place) + std::max(work, result), stream, problem);
}

template <typename T, int kOutputs>
cudaError_t run(Problem problem, unsigned char* workspace, cudaStream_t stream) {
  const Params& p = problem.p;
  T* packed = reinterpret_cast<T*>(workspace);
  const int64_t elements = int64_t(p.groups) * problem.output_tiles * problem.steps() * kOutputs *
                           Tile<T, kOutputs>::kChunk;
  const dim3 blocks(unsigned(std::min<int64_t>((elements + kThreads - 1) / kThreads, 65535)));
  UPSNET_RETURN_IF_ERROR(
      launch_kernel(pack_weights_kernel<T, kOutputs>, blocks, dim3(kThreads), 0, stream, problem, packed));
  problem.weights = packed;
  problem.features = p.input;
  if (p.layout == Layout::kNCHW && p.channels > 1) {
    T* features = reinterpret_cast<T*>(workspace + packed_bytes(problem));
    UPSNET_RETURN_IF_ERROR(transpose(static_cast<const T*>(p.input), features, p.batch, p.channels,
                                     int64_t(p.height) * p.width, stream));
    problem.features = features;
  }
  constexpr int kLanes = Tile<T, kOutputs>::kLanes;
  const bool is_aligned = p.channels % kLanes == 0 && problem.segment % kLanes == 0 &&
                          reinterpret_cast<uintptr_t>(problem.features) % kUnitBytes == 0;
  return is_aligned ? multiply<T, kOutputs, true>(problem, stream) : multiply<T, kOutputs, false>(problem, stream);
}

template <typename T>
cudaError_t run(const Params& p, void* workspace, cudaStream_t stream) {
  auto* bytes = static_cast<unsigned char*>(workspace);
  return tile_outputs(p) == 64 ? run<T, 64>(plan(p), bytes, stream) : run<T, 128>(plan(p), bytes, stream);
}

bool is_empty(const Params& p) {
  return p.batch == 0 || p.out_channels == 0 || p.out_height <= 0 || p.out_width <= 0;
}

}  // namespace

size_t workspace_size(const Params& p) {
  if (is_empty(p)) return 0;
  const size_t features = p.layout == Layout::kNCHW && p.channels > 1
                              ? size_t(p.batch) * p.channels * p.height * p.width * element_size(p.type)
                              : 0;
  return packed_bytes(plan(p)) + aligned(features);
}

int launch(const Params& p, void* workspace, CUstream_st* stream) {
  if (is_empty(p)) return cudaSuccess;
  switch (p.type) {
    case DType::kFloat32: return run<float>(p, workspace, stream);
    case DType::kFloat16: return run<Half>(p, workspace, stream);
    case DType::kBFloat16: return run<BFloat16>(p, workspace, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace upsnet::deform_conv

UPSNET_EXPORT_CUDA(deform_conv)
