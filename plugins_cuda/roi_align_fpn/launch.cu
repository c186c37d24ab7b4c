// RoIAlign over P2..P5 on the GPU: one gather over channels-last maps.
//
// A block has one box and a group of 16-byte channel vectors (8 halves, 4 floats). It computes the taps (kernel.cuh) of
// the box's rows and columns once, in shared memory. Then a warp takes a bin: each thread sums its vector over the
// bin's taps in float, so that a tap is one coalesced read of 512 bytes, and up to four of them are under way at once.
// As a warp has one bin, the numbers of its rows and columns cost no divergence: no tap is read in vain. (Where there
// are fewer than 32 vectors, or bins too many for 32 vectors' sums, a warp has several.) 7 warps divide the usual 49
// and 196 bins evenly. Sums go to a tile in shared memory that already has the order of the output, each thread's part
// shifted by one bank against its neighbour's; the tile leaves as one contiguous run of whole lines.
// All boxes of one channel group run before those of the next: that part of the maps stays in the L2 cache.
//
// Contiguous (NCHW) maps are first written channels-last into the workspace, all levels by one launch
// (common/transpose.cuh): the tiles of 64 pixels (float: 32) that some box can read, and no others (touched.cuh).
//
// Floor, 1000 boxes x 256 channels x 7 x 7 on P2..P5 of 800 x 1344 in half precision: the pixels under the boxes once
// (10 MB in the benchmark) and the output once (25 MB), 7.4 us at an H200's 4.8 TB/s. What binds is instructions. A bin
// has 8.9 taps on average (3 rows x 3 columns); each takes 16 instructions to convert and multiply 8 channels, and 4 to
// find them, so that the whole is 17 M for a warp, 18 us where none of a multiprocessor's four schedulers ever waits.
// From the L2 cache come the different pixels of each box, 128 MB: as long at 6 TB/s, at the same time.
// NCHW: a read and a write of all maps would be 91 MB, 19 us. Half of their tiles are under some box: 10 us.
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "common/cuda.h"
#include "common/exports.h"
#include "common/transpose.cuh"
#include "roi_align_fpn/gather.cuh"
#include "roi_align_fpn/kernel.cuh"
#include "roi_align_fpn/launch.h"
#include "roi_align_fpn/touched.cuh"

namespace upsnet::roi_align_fpn {
namespace {

constexpr int kThreads = 224;
constexpr int kBlocks = 4;  // of a multiprocessor: 72 registers a thread
constexpr int kVectorBytes = 16;
constexpr int kBankBytes = 4;
constexpr int kTileBytes = 50 * 1024;  // of shared memory for the sums of a block: 16 lanes of a mask head's 14 x 14

// Channels-last maps.
struct Maps {
  const void* data[kLevels];
  int pitch;  // elements from pixel to pixel
};

struct Plan {
  int lanes;                  // threads that share a bin: a power of two, at most 32
  int bins;                   // of a block
  int row_step, column_step;  // from a bin of a thread to its next one
  int slab;                   // elements of the tile that belong to one lane
  int taps;                   // room for those of one direction
  int tap_bytes;              // of shared memory, before the tile
  int shared;                 // bytes
  int piece;                  // bytes that are written at once: 16, 4 or, where they lie apart, 0: an element
};

// limit: bytes of shared memory that a block can have.
template <typename T, int kVector>
Plan plan_of(const Params& params, size_t limit) {
  const int all_bins = params.output_size * params.output_size;
  const int padding = kBankBytes / static_cast<int>(sizeof(T));
  Plan plan;
  plan.lanes = 32;
  while (plan.lanes > 1 && plan.lanes / 2 * kVector >= params.channels) plan.lanes /= 2;
  plan.taps = taps_of_direction(params);
  const int tap_bytes = 2 * static_cast<int>(plan.taps * sizeof(Tap) + params.output_size * sizeof(Line));
  plan.tap_bytes = (tap_bytes + 15) / 16 * 16;
  // The taps of long maps may leave less than kTileBytes. What does not hold a bin is refused when it is launched.
  const int tile_bytes = std::min(kTileBytes, static_cast<int>(limit) - plan.tap_bytes - plan.lanes * kBankBytes);
  const int vector_bytes = kVector * static_cast<int>(sizeof(T));
  while (plan.lanes > 16 && all_bins > tile_bytes / (plan.lanes * vector_bytes)) plan.lanes /= 2;
  const int fitting = std::max(tile_bytes / (plan.lanes * vector_bytes), 1);
  plan.bins = all_bins < fitting ? all_bins : fitting;
  plan.slab = kVector * plan.bins + padding;
  plan.row_step = kThreads / plan.lanes / params.output_size;
  plan.column_step = kThreads / plan.lanes % params.output_size;
  const bool together = kVector * sizeof(T) == kVectorBytes && plan.bins == all_bins;
  const auto in_pieces = [&](int bytes) {
    return together && int64_t{params.channels} * all_bins * sizeof(T) % bytes == 0 && is_aligned(params.output, bytes);
  };
  plan.piece = in_pieces(kVectorBytes) ? kVectorBytes : in_pieces(4) ? 4 : 0;
  plan.shared = plan.tap_bytes + plan.lanes * plan.slab * static_cast<int>(sizeof(T));
  return plan;
}

// The taps of one box in shared memory: [rows, columns][room], and where each bin's begin: [rows, columns][bin].
struct SharedTaps {
  Tap* taps;
  Line* lines;

  __device__ SharedTaps(unsigned char* memory, int room) {
    taps = reinterpret_cast<Tap*>(memory);
    lines = reinterpret_cast<Line*>(taps + 2 * room);
  }
};

__device__ __forceinline__ void find_taps(const Params& params, const float* box, int level, SharedTaps shared,
                                          int room) {
  const int bins = params.output_size;
  for (int i = threadIdx.x; i < 2 * bins; i += kThreads) {
    const bool is_column = i >= bins;
    const int length = is_column ? pick(params.widths, level) : pick(params.heights, level);
    const int before = is_column ? room : 0;
    Line line = find_line(params, box, level, is_column, is_column ? i - bins : i, length, shared.taps + before);
    line.first += before;
    shared.lines[i] = line;
  }
}

// The slabs of the tile, which lie one behind the other in the output, in pieces of kWords words of four bytes.
template <int kWords>
__device__ __forceinline__ void copy_slabs(const unsigned char* tile, int slab_pitch, int slab_bytes, int bytes,
                                           unsigned char* output) {
  constexpr int kPiece = 4 * kWords;
  const int slab_step = kThreads * kPiece / slab_bytes, step = kThreads * kPiece % slab_bytes;
  int slab = threadIdx.x * kPiece / slab_bytes, at = threadIdx.x * kPiece % slab_bytes;
#pragma unroll 1
  for (int i = threadIdx.x * kPiece; i < bytes; i += kThreads * kPiece) {
    Pack<uint32_t, kWords> piece;
    const auto* source = reinterpret_cast<const uint32_t*>(tile + slab * slab_pitch + at);
#pragma unroll
    for (int k = 0; k < kWords; ++k) piece.set(k, source[k]);
    *reinterpret_cast<Pack<uint32_t, kWords>*>(output + i) = piece;
    slab += slab_step;
    at += step;
    if (at >= slab_bytes) at -= slab_bytes, ++slab;
  }
}

// The tile -> the output. first: of the block's channels; there are `channels` of them.
template <typename T, int kVector>
__device__ __forceinline__ void write_tile(const Params& params, const Plan& plan, const T* tile, int roi, int first,
                                           int channels, int first_bin, int bins) {
  const int all_bins = params.output_size * params.output_size;
  T* output = static_cast<T*>(params.output) + (static_cast<int64_t>(roi) * params.channels + first) * all_bins;
  if (plan.piece > 0) {
    const auto* slabs = reinterpret_cast<const unsigned char*>(tile);
    auto* target = reinterpret_cast<unsigned char*>(output);
    const int pitch = plan.slab * sizeof(T), slab_bytes = kVector * bins * sizeof(T);
    const int bytes = channels * bins * sizeof(T);
    if (plan.piece == kVectorBytes) {
      copy_slabs<4>(slabs, pitch, slab_bytes, bytes, target);
    } else {
      copy_slabs<1>(slabs, pitch, slab_bytes, bytes, target);
    }
    return;
  }
#pragma unroll 1
  for (int i = threadIdx.x; i < channels * bins; i += kThreads) {
    const int channel = i / bins, bin = i - channel * bins;
    output[static_cast<int64_t>(channel) * all_bins + first_bin + bin] =
        tile[channel / kVector * plan.slab + channel % kVector * plan.bins + bin];
  }
}

// Grid: boxes x channel groups x parts of the bins.
template <typename T, int kVector>
__global__ void __launch_bounds__(kThreads, kBlocks) pool(Params params, Maps maps, Plan plan) {
  UPSNET_DYNAMIC_SHARED(memory);
  const int size = params.output_size, roi = blockIdx.x, image = roi / params.rois_per_image;
  const float* box = params.rois + 4 * static_cast<int64_t>(roi);
  const int level = level_of(box, params.inclusive != 0, params.rounded_levels != 0);
  const SharedTaps shared(memory, plan.taps);
  find_taps(params, box, level, shared, plan.taps);
  __syncthreads();

  T* tile = reinterpret_cast<T*>(memory + plan.tap_bytes);
  const int group = plan.lanes * kVector, first = blockIdx.y * group;
  const int lane = threadIdx.x % plan.lanes, channel = first + lane * kVector;
  const int first_bin = blockIdx.z * plan.bins;
  const int bins = plan.bins < size * size - first_bin ? plan.bins : size * size - first_bin;
  const unsigned width = pick(params.widths, level), pitch = maps.pitch * unsigned{sizeof(T)};
  const int64_t before = int64_t{image} * pick(params.heights, level) * width;
  const auto* data = static_cast<const unsigned char*>(pick(maps.data, level));
  const Map map{data + before * pitch + channel * sizeof(T), width, pitch};
  if (channel < params.channels) {
    const int groups = kThreads / plan.lanes;
    int row = (first_bin + threadIdx.x / plan.lanes) / size, column = (first_bin + threadIdx.x / plan.lanes) % size;
    for (int i = threadIdx.x / plan.lanes; i < bins; i += groups) {
      float sum[kVector] = {};
      const Line rows = shared.lines[row], columns = shared.lines[size + column];
      add_bin<T>(map, shared.taps + rows.first, rows.count, shared.taps + columns.first, columns.count, sum);
#pragma unroll
      for (int k = 0; k < kVector; ++k) tile[lane * plan.slab + k * plan.bins + i] = from_float<T>(sum[k]);
      row += plan.row_step;
      column += plan.column_step;
      if (column >= size) column -= size, ++row;
    }
  }
  __syncthreads();
  const int channels = params.channels - first < group ? params.channels - first : group;
  write_tile<T, kVector>(params, plan, tile, roi, first, channels, first_bin, bins);
}

int64_t padded_channels(const Params& params) {
  const int64_t vector = kVectorBytes / element_size(params.features_type);
  return (params.channels + vector - 1) / vector * vector;
}

size_t map_bytes(const Params& params, int level) {
  const size_t pixels = static_cast<size_t>(params.heights[level]) * params.widths[level];
  return aligned(params.batch * pixels * padded_channels(params) * element_size(params.features_type));
}

// Contiguous maps -> channels-last with `pitch` elements a pixel, zeros behind the channels.
template <typename T>
cudaError_t launch_transpose(const Params& params, unsigned char* workspace, cudaStream_t stream, Maps& maps) {
  maps.pitch = static_cast<int>(padded_channels(params));
  Transposition all{};
  all.batch = params.batch;
  all.rows = params.channels;
  all.pitch = maps.pitch;
  for (int level = 0; level < kLevels; ++level) {
    all.input[level] = params.features[level];
    maps.data[level] = all.output[level] = workspace;
    all.columns[level] = int64_t{params.heights[level]} * params.widths[level];
    workspace += map_bytes(params, level);
  }
  return transpose<T>(all, stream, UnderSomeBox{params});
}

template <typename T, int kVector>
cudaError_t launch_pool(const Params& params, const Maps& maps, cudaStream_t stream) {
  size_t limit = 0;
  UPSNET_RETURN_IF_ERROR(shared_limit(reinterpret_cast<const void*>(pool<T, kVector>), limit));
  const Plan plan = plan_of<T, kVector>(params, limit);
  const unsigned group = plan.lanes * kVector, bins = params.output_size * params.output_size;
  const dim3 grid(params.batch * params.rois_per_image, (params.channels + group - 1) / group,
                  (bins + plan.bins - 1) / plan.bins);
  if (grid.y > kMaxGrid || grid.z > kMaxGrid) return cudaErrorInvalidValue;
  return launch_kernel(pool<T, kVector>, grid, dim3(kThreads), plan.shared, stream, params, maps, plan);
}

template <typename T>
cudaError_t launch_typed(const Params& params, void* workspace, cudaStream_t stream) {
  constexpr int kVector = kVectorBytes / sizeof(T);
  Maps maps{};
  if (params.features_layout == Layout::kNCHW) {
    UPSNET_RETURN_IF_ERROR(launch_transpose<T>(params, static_cast<unsigned char*>(workspace), stream, maps));
    return launch_pool<T, kVector>(params, maps, stream);
  }
  maps.pitch = params.channels;
  bool in_vectors = params.channels % kVector == 0;
  for (int level = 0; level < kLevels; ++level) {
    maps.data[level] = params.features[level];
    in_vectors &= is_aligned(maps.data[level], kVectorBytes);
  }
  return in_vectors ? launch_pool<T, kVector>(params, maps, stream) : launch_pool<T, 1>(params, maps, stream);
}

}  // namespace

size_t workspace_size(const Params& params) {
  if (params.features_layout == Layout::kNHWC) return 0;
  size_t bytes = 0;
  for (int level = 0; level < kLevels; ++level) bytes += map_bytes(params, level);
  return bytes;
}

int launch(const Params& params, void* workspace, size_t bytes, CUstream_st* stream) {
  if (!is_supported(params) || bytes < workspace_size(params)) return cudaErrorInvalidValue;
  // Of the output, four bytes are written at once.
  if (!has_aligned_pointers(params) || !is_aligned(params.output, 4) || !is_aligned(workspace, kVectorBytes)) {
    return cudaErrorMisalignedAddress;
  }
  if (params.batch == 0 || params.rois_per_image == 0 || params.channels == 0) return cudaSuccess;
  switch (params.features_type) {
    case DType::kFloat32: return launch_typed<float>(params, workspace, stream);
    case DType::kFloat16: return launch_typed<Half>(params, workspace, stream);
    case DType::kBFloat16: return launch_typed<BFloat16>(params, workspace, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace upsnet::roi_align_fpn

UPSNET_EXPORT_CUDA(roi_align_fpn)
