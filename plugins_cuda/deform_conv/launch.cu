// Deformable convolution as an implicit matrix product: [pixels] x [taps * channels] by [taps * channels] x [outputs],
// whose left factor (torchvision's column buffer, 310 MB at the size below) exists only as tiles on the chip.
//
// A block makes 8 x 16 output pixels x 64, 128 or (16-bit types) 256 output channels. Once for all channels it computes
// where each of its pixels' taps sample (corners and weights, in float, to shared memory). Then, step by step (a step
// is a chunk of 64 bytes of channels of one tap), it gathers the four corners from NHWC rows in 16-byte loads, blends
// them in float, rounds to the features' type and multiplies by the weights' chunk. Of the 16-bit types a warp blends
// 32 pixels right into the registers that the matrix units read (tile.cuh), and multiplies them by 128 outputs: pixels
// need not pass through shared memory, whose port is the gather's, too. For 256 outputs two warps blend half of them
// each, and hand that over. Steps overlap: while one is multiplied, the next is blended, and the corners after those
// are on their way to registers, the next weights (repacked in the workspace, so that a chunk is one contiguous piece)
// to shared memory. The taps of a chunk follow each other, and pixels are a square rather than a row, so that corners
// are found in L1 again: 9 taps x 4 corners read a pixel up to 36 times. NCHW inputs are first transposed into the
// workspace. Maps too small to fill a GPU (P4, P5) have their steps split among blocks, whose float sums a last kernel
// adds up, always in the same order.
//
// Floor at 256 -> 128 channels, 3x3, 200 x 336, fp16: 39.6 GFLOP (40 us at an H200's 989 TFLOP/s; mma.sync reaches some
// 60 % of that, 65 us: the rest is wgmma's); 34 MB in and 17 MB out, 5 MB of offsets (12 us at 4.8 TB/s; NCHW: 68 MB
// more, 14 us). What binds is the port of L1 and shared memory, 128 bytes a clock and multiprocessor: 1.24 GB of
// corners (42 us), 1.24 GB of weights (a warp reads 8 KB a step), 0.3 GB that bring these, 0.15 to 0.6 GB of samples.
// Instruction slots: 525 blocks x 4 warps x 72 steps x 465 (76 us), of which 256 blend.
#include <algorithm>

#include "common/cuda.h"
#include "common/exports.h"
#include "common/transpose.cuh"
#include "deform_conv/product.cuh"

namespace upsnet::deform_conv {
namespace {

constexpr int kThreads = 256;              // of the kernels around the product
constexpr int kOutputsWanted = 256 * 128;  // in the blocks' tiles, about 2 x 128 a multiprocessor
constexpr int kLeastSteps = 8;             // of a split
constexpr int kFewTaps = 3;                // to sample fewer at once costs more than a second block brings

template <typename T, int kOutputs, bool kAligned>
__global__ void __launch_bounds__(Tile<T, kOutputs>::kThreads, Product<T, kOutputs, kAligned>::kBlocksAtOnce)
    deform_conv_kernel(const Problem problem) {
  UPSNET_DYNAMIC_SHARED(shared);
  Product<T, kOutputs, kAligned> block(problem, shared);
  Tile<T, kOutputs> products;
  for (block.segment = 0; block.segment < problem.segments; ++block.segment) {
    for (block.first_tap = 0; block.first_tap < problem.taps; block.first_tap += problem.taps_at_once) {
      const int left_over = problem.taps - block.first_tap;
      block.accumulate(products, left_over < problem.taps_at_once ? left_over : problem.taps_at_once);
    }
  }
  if (problem.splits > 1) {
    block.write_partial(products);
  } else {
    block.write(products);
  }
}

// Adds the splits and the bias, rounds, and writes in the output's layout.
template <typename T>
__global__ void __launch_bounds__(kThreads) add_splits_kernel(const Problem problem) {
  const Params& p = problem.p;
  // Outputs that are split are few (partial_bytes): 32 bits hold their number, and divide faster.
  const unsigned plane = p.out_height * p.out_width, total = p.batch * plane * p.out_channels;
  for (unsigned i = blockIdx.x * kThreads + threadIdx.x; i < total; i += gridDim.x * kThreads) {
    const unsigned channel = i % p.out_channels, pixel = i / p.out_channels;
    float sum = p.bias ? p.bias[channel] : 0.0f;
    for (int split = 0; split < problem.splits; ++split) sum += problem.partial[split * total + i];
    const unsigned at = (pixel / plane * p.out_channels + channel) * plane + pixel % plane;
    static_cast<T*>(p.output)[p.x_layout == Layout::kNHWC ? i : at] = from_float<T>(sum);
  }
}

// weight [out_channels, channels / groups, taps] -> the order in which deform_conv_kernel reads, a unit of one output
// channel at a time; ragged ends are zero.
template <typename T, int kOutputs>
__global__ void __launch_bounds__(kThreads) pack_weights_kernel(const Problem problem, T* __restrict__ packed) {
  using Products = Tile<T, kOutputs>;
  constexpr int kLanes = Products::kLanes;
  const T* weight = static_cast<const T*>(problem.p.weight);
  // 32 bits hold their number, and a step beyond it: run() has seen to that.
  const uint32_t total = uint32_t(problem.p.group) * problem.output_tiles * problem.steps() * (kOutputs * kUnits);
  for (uint32_t i = blockIdx.x * kThreads + threadIdx.x; i < total; i += gridDim.x * kThreads) {
    const int32_t unit = i % kUnits, output_in_tile = i / kUnits % kOutputs;
    uint32_t piece = i / (kUnits * kOutputs);
    T* target = packed + int64_t(piece) * (kOutputs * Products::kChunk);
    const int32_t tap = piece % problem.taps;
    piece /= problem.taps;
    const int32_t in_segment = piece % problem.chunks * Products::kChunk + unit * kLanes;
    piece /= problem.chunks;
    const int32_t segment = piece % problem.segments;
    piece /= problem.segments;
    const int32_t output = piece % problem.output_tiles * kOutputs + output_in_tile;
    const int64_t group = piece / problem.output_tiles;
    const int64_t channel = int64_t(segment) * problem.segment + in_segment;
    const int64_t row = (group * problem.group_outputs + output) * problem.segments * problem.segment + channel;
    T values[kLanes];
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      const bool exists = in_segment + lane < problem.segment && output < problem.group_outputs;
      values[lane] = exists ? weight[(row + lane) * problem.taps + tap] : from_float<T>(0.0f);
    }
    Products::store_weights(target, output_in_tile, unit, values);
  }
}

int32_t ceil_divide(int64_t a, int64_t b) { return int32_t((a + b - 1) / b); }

// Few output channels take the narrower tile. Many share what is sampled; float multiplies for so long that it can
// sample again.
int32_t tile_outputs(const Params& p) {
  const int32_t outputs = p.out_channels / p.group;
  return outputs <= 64 ? 64 : outputs <= 128 || p.x_type == DType::kFloat32 ? 128 : 256;
}

// With half of them or fewer, steps are split.
int64_t blocks_wanted(const Params& p) { return std::min(kOutputsWanted / tile_outputs(p), 256); }

int64_t unsplit_blocks(const Problem& problem) {
  return int64_t(problem.p.batch) * problem.tiles_y * problem.tiles_x * problem.p.group * problem.output_tiles;
}

// Steps of several segments are not split.
int64_t most_splits(const Problem& problem) {
  const int64_t taps = int64_t{problem.p.kernel_h} * problem.p.kernel_w;
  const int64_t steps = problem.segments > 1 ? 1 : problem.chunks * taps;
  return std::max<int64_t>(steps / kLeastSteps, 1);
}

Problem plan(const Params& p) {
  Problem problem{};
  const int32_t chunk = kUnits * kUnitBytes / int32_t(element_size(p.x_type));
  problem.p = p;
  problem.taps = int32_t(int64_t{p.kernel_h} * p.kernel_w);
  problem.segment = segment_channels(p);
  problem.segments = p.channels / p.group / problem.segment;
  problem.chunks = ceil_divide(problem.segment, chunk);
  problem.group_outputs = p.out_channels / p.group;
  problem.output_tiles = ceil_divide(problem.group_outputs, tile_outputs(p));
  problem.tiles_y = ceil_divide(p.out_height, kTileRows);
  problem.tiles_x = ceil_divide(p.out_width, kTileColumns);
  const int32_t lanes = kUnitBytes / int32_t(element_size(p.x_type));
  const int32_t run = p.x_layout == Layout::kNHWC ? problem.group_outputs : p.out_width;
  problem.writes_units = run % lanes == 0 && is_aligned(p.output, kUnitBytes);
  problem.splits = int32_t(std::clamp<int64_t>(blocks_wanted(p) / unsplit_blocks(problem), 1, most_splits(problem)));
  return problem;
}

// The slices of the workspace, in this order. None shrinks when a size of the inputs grows.
size_t packed_bytes(const Problem& problem) {
  const size_t steps = size_t(problem.segments) * problem.chunks * problem.p.kernel_h * problem.p.kernel_w;
  const size_t pieces = steps * problem.p.group * problem.output_tiles;
  return aligned(pieces * tile_outputs(problem.p) * kUnits * kUnitBytes);
}

// A bound that never shrinks when a size grows: TensorRT asks once, at the largest shapes, which split nothing.
// By plan(), splits <= most_splits and splits * unsplit_blocks <= blocks_wanted; outputs <= unsplit_blocks * a block's
// most. So splits * outputs is at most most_splits * outputs, and at most blocks_wanted * a block's most.
size_t partial_bytes(const Problem& problem) {
  const Params& p = problem.p;
  const size_t splits = most_splits(problem);
  if (splits == 1) return 0;
  const size_t outputs = size_t(p.batch) * p.out_channels * p.out_height * p.out_width;
  const size_t block_most = size_t{kPixels} * tile_outputs(p), most = blocks_wanted(p) * block_most;  // 16 MiB
  return aligned(std::min(std::min(splits, most) * std::min(outputs, most), most) * sizeof(float));
}

bool transposes(const Params& p) { return p.x_layout == Layout::kNCHW && p.channels > 1; }

size_t features_bytes(const Params& p) {
  const size_t elements = size_t(p.batch) * p.channels * p.height * p.width;
  return transposes(p) ? aligned(elements * element_size(p.x_type)) : 0;
}

// Blocks for a kernel whose threads stride over `elements`.
dim3 striding_blocks(int64_t elements) {
  return dim3(unsigned(std::min<int64_t>((elements + kThreads - 1) / kThreads, 65535)));
}

template <typename T, int kOutputs, bool kAligned>
cudaError_t multiply(Problem problem, cudaStream_t stream) {
  using Body = Product<T, kOutputs, kAligned>;
  constexpr size_t kTapBytes = kPixels * (sizeof(int4) + sizeof(float4));
  constexpr size_t kFixed = sizeof(Place) + 2 * Body::kStageBytes;
  constexpr size_t kByPixel = kPixels * (Body::kWritten + Body::kPad) * sizeof(T);
  constexpr size_t kByOutput = Body::kWritten * (kPixels + Body::kPad) * sizeof(T);
  const auto kernel = deform_conv_kernel<T, kOutputs, kAligned>;
  const int64_t blocks = unsplit_blocks(problem) * problem.splits;
  if (blocks > INT32_MAX) return cudaErrorInvalidValue;
  // Fewer taps at once where shared memory is short. A block can have that of a whole multiprocessor, but for 1 KB.
  size_t limit = 0;
  UPSNET_RETURN_IF_ERROR(shared_limit(reinterpret_cast<const void*>(kernel), limit));
  const size_t part = (limit + 1024) / Body::kBlocksAtOnce - 1024;
  const size_t share = part < kFixed + kFewTaps * kTapBytes ? limit : part;
  const size_t room = share < kFixed + kTapBytes ? 1 : (share - kFixed) / kTapBytes;
  const int32_t rounds = ceil_divide(problem.taps, int32_t(std::min<size_t>(room, kTapsAtOnce)));
  problem.taps_at_once = ceil_divide(problem.taps, rounds);
  const size_t work = kFixed + problem.taps_at_once * kTapBytes;
  const size_t result = sizeof(Place) + (problem.p.x_layout == Layout::kNHWC ? kByPixel : kByOutput);
  return launch_kernel(kernel, dim3(unsigned(blocks)), dim3(Body::kThreads), std::max(work, result), stream, problem);
}

template <typename T, int kOutputs>
cudaError_t run(Problem problem, unsigned char* workspace, cudaStream_t stream) {
  const Params& p = problem.p;
  T* packed = reinterpret_cast<T*>(workspace);
  const int64_t packed_units = packed_bytes(problem) / kUnitBytes;
  if (packed_units > int64_t{UINT32_MAX} - 65535 * kThreads) return cudaErrorInvalidValue;
  UPSNET_RETURN_IF_ERROR(launch_kernel(pack_weights_kernel<T, kOutputs>, striding_blocks(packed_units), dim3(kThreads),
                                       0, stream, problem, packed));
  problem.weights = packed;
  problem.partial = reinterpret_cast<float*>(workspace + packed_bytes(problem));
  problem.features = p.x;
  if (transposes(p)) {
    T* features = reinterpret_cast<T*>(workspace + packed_bytes(problem) + partial_bytes(problem));
    UPSNET_RETURN_IF_ERROR(
        transpose(static_cast<const T*>(p.x), features, p.batch, p.channels, int64_t(p.height) * p.width, stream));
    problem.features = features;
  }
  constexpr int kLanes = Tile<T, kOutputs>::kLanes;
  const bool in_units =
      p.channels % kLanes == 0 && problem.segment % kLanes == 0 && is_aligned(problem.features, kUnitBytes);
  const cudaError_t error =
      in_units ? multiply<T, kOutputs, true>(problem, stream) : multiply<T, kOutputs, false>(problem, stream);
  if (error != cudaSuccess || problem.splits == 1) return error;
  const int64_t outputs = int64_t(p.batch) * p.out_channels * p.out_height * p.out_width;
  return launch_kernel(add_splits_kernel<T>, striding_blocks(outputs), dim3(kThreads), 0, stream, problem);
}

template <typename T>
cudaError_t run(const Params& p, void* workspace, cudaStream_t stream) {
  auto* bytes = static_cast<unsigned char*>(workspace);
  if constexpr (sizeof(T) == 2) {
    if (tile_outputs(p) == 256) return run<T, 256>(plan(p), bytes, stream);
  }
  return tile_outputs(p) == 64 ? run<T, 64>(plan(p), bytes, stream) : run<T, 128>(plan(p), bytes, stream);
}

bool is_empty(const Params& p) { return p.batch == 0 || p.out_channels == 0 || p.out_height <= 0 || p.out_width <= 0; }

}  // namespace

size_t workspace_size(const Params& p) {
  if (is_empty(p) || !has_groups(p)) return 0;
  const Problem problem = plan(p);
  return packed_bytes(problem) + partial_bytes(problem) + features_bytes(p);
}

int launch(const Params& p, void* workspace, size_t bytes, CUstream_st* stream) {
  if (!is_supported(p) || bytes < workspace_size(p)) return cudaErrorInvalidValue;
  if (!has_aligned_pointers(p) || !is_aligned(workspace, kUnitBytes)) return cudaErrorMisalignedAddress;
  if (is_empty(p)) return cudaSuccess;
  switch (p.x_type) {
    case DType::kFloat32: return run<float>(p, workspace, stream);
    case DType::kFloat16: return run<Half>(p, workspace, stream);
    case DType::kBFloat16: return run<BFloat16>(p, workspace, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace upsnet::deform_conv

UPSNET_EXPORT_CUDA(deform_conv)
