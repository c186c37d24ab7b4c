// The gradient of RoIAlign over P2..P5 on the GPU: a gather, as forward, with the parts exchanged.
//
// A block owns a tile of kPixels pixels of a map and a group of channels. It looks through the boxes of the image for
// those that reach the tile (kernel.cuh), and its warps sum, pixel by pixel, the boxes' shares in their order: weighted
// reads of 512 bytes of bins' gradients, as forward reads pixels (../gather.cuh). So there are no atomics, every number
// is written once, in its own type and layout, and each time has the same bits: one mode is both the deterministic and
// the fast one.
//
// Before, one kernel finds every box's shares (shares.cuh), and another brings grad_output from [box][channel][bin] to
// [box][bin][channel] (not float64, for which this need not be fast).
//
// Floor, 1024 boxes x 256 channels x 7 x 7 on P2..P5 of two images of 800 x 1344, float: the maps' gradients once
// (183 MB), the bins' twice and once back (154 MB): 70 us at an H200's 4.8 TB/s, 35 us in 16 bits. What binds those is
// instructions, as forward: a box covers about 260 pixels, which have 450 pairs of shares, 29 M instructions for a warp
// in all, 31 us where no scheduler waits. Sums added by atomics would want as many bytes of them in L2, and a map of
// float set to zero, read again and rounded. The price is that a pixel's boxes come one after the other, about 0.6 us
// each for the two pixels of a warp: 35 us under a cluster of 60 boxes, beside all else, and 280 us under one of 500.
#include <type_traits>

#include "common/cuda.h"
#include "common/exports.h"
#include "common/transpose.cuh"
#include "roi_align_fpn/backward/kernel.cuh"
#include "roi_align_fpn/backward/launch.h"
#include "roi_align_fpn/backward/shares.cuh"
#include "roi_align_fpn/gather.cuh"

namespace upsnet::roi_align_fpn_backward {
namespace {

using roi_align_fpn::add_bin;
using roi_align_fpn::Map;
using roi_align_fpn::Pack;
using roi_align_fpn::SumOf;

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kBlocks = 3;   // of a multiprocessor: 80 registers a thread
constexpr int kPixels = 16;  // of a tile
constexpr int kListed = 32;  // boxes whose shares a block looks up at once

// A tile's rows in NCHW are 32 bytes, a sector, long.
template <typename T>
constexpr int kTileColumns = sizeof(T) == 2 ? 16 : 8;
template <typename T>
constexpr int kTileRows = kPixels / kTileColumns<T>;

struct Plan {
  int lanes;              // threads that share a pixel: a power of two, at most 32
  int tiles[kLevels];     // of the maps of an image
  bool in_vectors;        // channels-last maps are written so
  unsigned bin_pitch;     // bytes
  int64_t channel_pitch;  // bytes
  int64_t box_pitch;      // bytes
};

// The part of a map that a block owns.
struct Tile {
  int level, row, column;
};

// Small maps come first: large boxes are there, and each pixel has many.
template <typename T>
__device__ __forceinline__ Tile tile_of(const Params& params, const Plan& plan, int index) {
  Tile tile{kLevels - 1, 0, 0};
#pragma unroll
  for (int level = kLevels - 1; level > 0; --level) {
    if (tile.level != level || index < plan.tiles[level]) continue;
    index -= plan.tiles[level];
    tile.level = level - 1;
  }
  const int across = (pick(params.widths, tile.level) - 1) / kTileColumns<T> + 1;
  tile.row = index / across * kTileRows<T>;
  tile.column = index % across * kTileColumns<T>;
  return tile;
}

// The shares of one row or column of a map, of those of a box.
__device__ __forceinline__ Line find_reached(const int32_t* reached, int count, int index) {
  const auto first_from = [&](int value) {
    int low = 0, high = count;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (__ldg(reached + middle) < value) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  };
  const int first = first_from(index);
  return {first, first_from(index + 1) - first};
}

// The sums of a tile, in shared memory: four channels of a pixel lie together, and neither those who add nor those who
// write, pixel beside pixel, meet a bank twice.
template <typename Real, int kVector>
struct Sums {
  static constexpr int kQuad = kVector < 4 ? kVector : 4;
  struct alignas(kQuad * sizeof(Real)) Quad {
    Real values[kQuad];
  };
  Quad* quads;
  int lanes;

  __device__ Quad& at(int pixel, int lane, int part) const {
    return quads[(part * kPixels + pixel) * (lanes + 1) + lane];
  }
  __device__ void load(int pixel, int lane, Real (&sum)[kVector]) const {
#pragma unroll
    for (int part = 0; part < kVector / kQuad; ++part) {
      const Quad quad = at(pixel, lane, part);
#pragma unroll
      for (int k = 0; k < kQuad; ++k) sum[part * kQuad + k] = quad.values[k];
    }
  }
  __device__ void store(int pixel, int lane, const Real (&sum)[kVector]) const {
#pragma unroll
    for (int part = 0; part < kVector / kQuad; ++part) {
      Quad quad;
#pragma unroll
      for (int k = 0; k < kQuad; ++k) quad.values[k] = sum[part * kQuad + k];
      at(pixel, lane, part) = quad;
    }
  }
  static size_t bytes(int lanes) { return sizeof(Quad) * (kVector / kQuad) * kPixels * (lanes + 1); }
};

// The boxes of an image, from `begin` on and one for each thread, that reach the tile: in their order. How many.
template <typename T>
__device__ __forceinline__ int list_boxes(const Found* found, int begin, int count, Tile tile, int* listed) {
  __shared__ int hits[kWarps];
  const int box = begin + threadIdx.x;
  const bool hit =
      box < count && found[box].reach.meets(tile.level, tile.row, tile.column, kTileRows<T>, kTileColumns<T>);
  const unsigned votes = __ballot_sync(~0u, hit), lane = threadIdx.x % 32;
  if (lane == 0) hits[threadIdx.x / 32] = __popc(votes);
  __syncthreads();
  int before = 0, all = 0;
  for (int warp = 0; warp < kWarps; ++warp) {
    if (warp < int(threadIdx.x / 32)) before += hits[warp];
    all += hits[warp];
  }
  if (hit) listed[before + __popc(votes & ((1u << lane) - 1))] = box;
  __syncthreads();
  return all;
}

// The tile of an image -> the gradient of its map.
template <typename T, int kVector>
__device__ __forceinline__ void write_tile(const Params& params, const Plan& plan, Tile tile, int64_t image, int first,
                                           Sums<SumOf<T>, kVector> sums) {
  const int height = pick(params.heights, tile.level), width = pick(params.widths, tile.level);
  const int64_t pixels = int64_t{height} * width;
  T* const map = static_cast<T*>(pick(params.grad_features, tile.level)) + image * pixels * params.channels;
  const bool is_nhwc = params.features_layout == Layout::kNHWC;
  constexpr int kQuad = sums.kQuad, kParts = kVector / kQuad;
  // Channels-last: a thread writes a vector of a pixel; else, four channels, and its neighbours are of the next pixels.
  const int parts = is_nhwc ? plan.lanes : plan.lanes * kParts;
#pragma unroll 1
  for (int i = threadIdx.x; i < kPixels * parts; i += kThreads) {
    const int pixel = is_nhwc ? i / parts : i % kPixels, part = is_nhwc ? i % parts : i / kPixels;
    const int row = tile.row + pixel / kTileColumns<T>, column = tile.column + pixel % kTileColumns<T>;
    const int channel = first + part * (is_nhwc ? kVector : kQuad);
    if (row >= height || column >= width || channel >= params.channels) continue;
    const int64_t at = int64_t{row} * width + column;
    const int left = params.channels - channel;
    if (is_nhwc) {
      SumOf<T> sum[kVector];
      sums.load(pixel, part, sum);
      T* const target = map + at * params.channels + channel;
      if (plan.in_vectors) {
        Pack<T, kVector> pack;
#pragma unroll
        for (int k = 0; k < kVector; ++k) pack.set(k, narrowed<T>(sum[k]));
        *reinterpret_cast<Pack<T, kVector>*>(target) = pack;
        continue;
      }
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        if (k < left) target[k] = narrowed<T>(sum[k]);
      }
    } else {
      const auto quad = sums.at(pixel, part / kParts, part % kParts);
#pragma unroll
      for (int k = 0; k < kQuad; ++k) {
        if (k < left) map[(channel + k) * pixels + at] = narrowed<T>(quad.values[k]);
      }
    }
  }
}

// Grid: tiles x groups of channels x images.
template <typename T, int kVector>
__global__ void __launch_bounds__(kThreads, kBlocks) gather(Params params, Workspace<SumOf<T>> space, Plan plan) {
  using Real = SumOf<T>;
  constexpr int kLines = kTileRows<T> + kTileColumns<T>;
  UPSNET_DYNAMIC_SHARED(memory);
  __shared__ int listed[kThreads];
  __shared__ Line lines[kListed * kLines];
  const Sums<Real, kVector> sums{reinterpret_cast<typename Sums<Real, kVector>::Quad*>(memory), plan.lanes};
  const Tile tile = tile_of<T>(params, plan, blockIdx.x);
  const int count = params.rois_per_image, size = params.output_size, first = blockIdx.y * plan.lanes * kVector;
  const int lane = threadIdx.x % plan.lanes, groups = kThreads / plan.lanes, channel = first + lane * kVector;
  for (int64_t image = blockIdx.z; image < params.batch; image += gridDim.z) {
    for (int pixel = threadIdx.x / plan.lanes; pixel < kPixels; pixel += groups) sums.store(pixel, lane, {});
    for (int begin = 0; begin < count; begin += kThreads) {
      const int hits = list_boxes<T>(space.found + image * count, begin, count, tile, listed);
      for (int done = 0; done < hits; done += kListed) {
        const int here = min(kListed, hits - done);
        for (int i = threadIdx.x; i < here * kLines; i += kThreads) {
          const int line = i % kLines, direction = line >= kTileRows<T>;
          const int64_t box = image * count + listed[done + i / kLines];
          const int index = direction ? tile.column + line - kTileRows<T> : tile.row + line;
          lines[i] = find_reached(space.reached + (2 * box + direction) * space.room,
                                  space.found[box].counts[direction], index);
        }
        __syncthreads();
        for (int pixel = threadIdx.x / plan.lanes; pixel < kPixels && channel < params.channels; pixel += groups) {
          Real sum[kVector];
          sums.load(pixel, lane, sum);
#pragma unroll 1
          for (int i = 0; i < here; ++i) {
            const Line rows = lines[i * kLines + pixel / kTileColumns<T>];
            const Line columns = lines[i * kLines + kTileRows<T> + pixel % kTileColumns<T>];
            if (rows.count == 0 || columns.count == 0) continue;
            const int64_t box = image * count + listed[done + i];
            const Share<Real>* const shares = space.shares + 2 * box * space.room;
            const Map bins{space.bins + box * plan.box_pitch + channel * plan.channel_pitch, unsigned(size),
                           plan.bin_pitch};
            add_bin<T>(bins, shares + rows.first, rows.count, shares + space.room + columns.first, columns.count, sum);
          }
          sums.store(pixel, lane, sum);
        }
        __syncthreads();
      }
    }
    __syncthreads();
    write_tile<T, kVector>(params, plan, tile, image, first, sums);
    __syncthreads();
  }
}

// --- launches --------------------------------------------------------------------------------------------------------

template <typename T, int kVector>
cudaError_t launch_gather(const Params& params, const Workspace<SumOf<T>>& space, cudaStream_t stream) {
  Plan plan{};
  plan.lanes = 32;
  while (plan.lanes > 1 && plan.lanes / 2 * kVector >= params.channels) plan.lanes /= 2;
  int64_t tiles = 0;
  plan.in_vectors = params.channels % kVector == 0;
  for (int level = 0; level < kLevels; ++level) {
    const int64_t down = (int64_t{params.heights[level]} + kTileRows<T> - 1) / kTileRows<T>;
    const int64_t across = (int64_t{params.widths[level]} + kTileColumns<T> - 1) / kTileColumns<T>;
    if (down * across > INT32_MAX) return cudaErrorInvalidValue;
    plan.tiles[level] = int(down * across);
    tiles += plan.tiles[level];
    plan.in_vectors &= is_aligned(params.grad_features[level], kVector * sizeof(T));
  }
  const int64_t bins = int64_t{params.output_size} * params.output_size, bytes = sizeof(T);
  const bool is_turned = !std::is_same_v<T, double>;
  plan.channel_pitch = is_turned ? bytes : bins * bytes;
  plan.bin_pitch = unsigned(is_turned ? space.channel_bytes(params) : bytes);
  plan.box_pitch = is_turned ? bins * plan.bin_pitch : params.channels * plan.channel_pitch;
  const int group = plan.lanes * kVector, groups = (params.channels + group - 1) / group;
  if (tiles > INT32_MAX || groups > int(kMaxGrid)) return cudaErrorInvalidValue;
  if (tiles == 0) return cudaSuccess;
  const dim3 grid(unsigned(tiles), groups, unsigned(params.batch) < kMaxGrid ? params.batch : kMaxGrid);
  const size_t shared = Sums<SumOf<T>, kVector>::bytes(plan.lanes);
  return launch_kernel(gather<T, kVector>, grid, dim3(kThreads), shared, stream, params, space, plan);
}

template <typename T>
cudaError_t launch_typed(const Params& params, void* workspace, cudaStream_t stream) {
  using Real = SumOf<T>;
  Workspace<Real> space(params, workspace);
  const int boxes = params.batch * params.rois_per_image;
  if (boxes > 0) {
    UPSNET_RETURN_IF_ERROR(
        launch_kernel(find_shares<Real>, dim3(boxes), dim3(kFinders), 0, stream, forward_of(params), space));
  }
  if constexpr (std::is_same_v<T, double>) {
    space.bins = static_cast<unsigned char*>(const_cast<void*>(params.grad_output));
    return launch_gather<T, 1>(params, space, stream);
  } else {
    Transposition bins{};
    bins.input[0] = params.grad_output;
    bins.output[0] = space.bins;
    bins.columns[0] = int64_t{params.output_size} * params.output_size;
    bins.batch = boxes;
    bins.rows = params.channels;
    bins.pitch = int(space.channel_bytes(params) / sizeof(T));
    UPSNET_RETURN_IF_ERROR(transpose<T>(bins, stream));
    return launch_gather<T, kVectorBytes / sizeof(T)>(params, space, stream);
  }
}

}  // namespace

size_t workspace_size(const Params& params) {
  if (!is_supported(params)) return 0;
  return params.features_type == kFloat64 ? Workspace<double>(params, nullptr).bytes
                                          : Workspace<float>(params, nullptr).bytes;
}

int launch(const Params& params, void* workspace, size_t bytes, CUstream_st* stream) {
  if (!is_supported(params) || bytes < workspace_size(params)) return cudaErrorInvalidValue;
  if (!has_aligned_pointers(params) || !is_aligned(workspace, kVectorBytes)) return cudaErrorMisalignedAddress;
  if (params.batch == 0 || params.channels == 0) return cudaSuccess;
  if (params.features_type == kFloat64) return launch_typed<double>(params, workspace, stream);
  switch (params.features_type) {
    case DType::kFloat32: return launch_typed<float>(params, workspace, stream);
    case DType::kFloat16: return launch_typed<Half>(params, workspace, stream);
    case DType::kBFloat16: return launch_typed<BFloat16>(params, workspace, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace upsnet::roi_align_fpn_backward

UPSNET_EXPORT_CUDA(roi_align_fpn_backward)
