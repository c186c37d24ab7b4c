// The gradient of deformable convolution between its two matrix products: [B, Ho, Wo, taps, C] of samples' gradients
// in, samples out.
//
// A team of lanes takes a sample of one offset group, a lane 16 bytes of its channels: it reads the four corners from
// NHWC rows once, writes the sample, sums what offset and mask get by shuffles, and adds to the gradients of the four
// corners by atomics, four floats at a time on sm_90 (red.v4). Teams next to each other have the taps of one pixel: the
// corners of the 9 taps lie near each other, and 16 KB of them in L1. Sums are float (double): 16-bit features have a
// map of floats in the workspace, and are rounded once, at the end. NCHW features are transposed into the workspace
// first, and their gradient out of it. Deterministic: the atomics stay away, and owned.cuh adds.
//
// At 256 channels, 3x3, 200 x 336, bfloat16: 310 MB of gradients in and 310 MB of samples out, 130 us at 4.8 TB/s;
// corners 1.24 GB, of L1; 619 million sums of floats, 2.5 GB to L2, are what binds: 0.6 ms if L2 takes 4 TB/s of them.
#include <algorithm>

#include "common/exports.h"
#include "common/transpose.cuh"
#include "deform_conv/columns/owned.cuh"
#include "deform_conv/columns/samples.cuh"

namespace upsnet::deform_conv_columns {
namespace {

constexpr int kSamples = 4;  // of a team
constexpr int kTurned = 32;  // rows and columns of a tile

// Grid: items x images. Item: (pixel, offset group, tap), the last one fastest.
template <typename T, typename S, int kCount>
__global__ void __launch_bounds__(kThreads) columns_kernel(const Problem problem) {
  const Params& p = problem.p;
  const uint32_t lanes = problem.lanes, teams = kThreads / lanes, lane = threadIdx.x % lanes;
  const uint32_t group_channels = p.channels / p.offset_group, places = p.offset_group * p.taps;
  const int64_t plane = out_plane(p);
  const uint32_t items = uint32_t(plane) * places, first_item = blockIdx.x * (teams * kSamples) + threadIdx.x / lanes;
  for (int64_t image = blockIdx.y; image < p.batch; image += gridDim.y) {
    for (uint32_t item = first_item; item < first_item + teams * kSamples; item += teams) {
      const bool there = item < items;
      if (!__any_sync(~0u, there)) break;
      const uint32_t pixel = (there ? item : 0) / places, index = (there ? item : 0) - pixel * places;
      const uint32_t group = index / p.taps, tap = index - group * p.taps;
      const Point<S> point = point_of<S>(p, image, index, pixel);
      const S mask = mask_of<S>(p, image, index, pixel);
      const bool inside = (point.pixel[0] & point.pixel[1] & point.pixel[2] & point.pixel[3]) >= 0;
      const int64_t first = ((image * plane + pixel) * p.taps + tap) * p.channels + group * group_channels;
      const T* gradient = static_cast<const T*>(p.grad_columns) + first;
      T* column = static_cast<T*>(p.columns) + first;
      const Sample<T, S, kCount> sample(problem, point, mask, image, group * group_channels);
      Moments<S> moments{};
      for (uint32_t c = lane * kCount; there && c < group_channels; c += lanes * kCount) {
        if (inside) {
          sample.visit(gradient, column, c, moments);
        } else {
          Piece<T, kCount>{}.write(column + c);
        }
      }
      moments = sum_over_team(moments, lanes);
      if (!there || lane != 0) continue;
      const int64_t place = image * places + index;
      S* offsets = static_cast<S*>(p.grad_offset) + 2 * place * plane + pixel;
      offsets[0] = mask * moments.down(point.right), offsets[plane] = mask * moments.right(point.down);
      if (p.mask) { static_cast<S*>(p.grad_mask)[place * plane + pixel] = moments.sample(point.down, point.right); }
    }
  }
}

// Grid: tiles of pixels x 32 channels of one offset group x images.
template <typename T, typename S>
__global__ void __launch_bounds__(kThreads) owned_kernel(const Problem problem) {
  using Tile = OwnedTile<T, S>;
  UPSNET_DYNAMIC_SHARED(shared);
  const Params& p = problem.p;
  const int32_t across = (p.width + kOwnedColumns - 1) / kOwnedColumns, group_channels = p.channels / p.offset_group;
  const int32_t chunks = (group_channels + kOwnedChannels - 1) / kOwnedChannels;
  for (int64_t image = blockIdx.z; image < p.batch; image += gridDim.z) {
    for (int32_t chunk = blockIdx.y; chunk < chunks * p.offset_group; chunk += gridDim.y) {
      const int32_t first = chunk % chunks * kOwnedChannels, left = group_channels - first;
      const int32_t channel = chunk / chunks * group_channels + first;
      const int32_t count = left < kOwnedChannels ? left : kOwnedChannels;
      const int32_t row = int32_t(blockIdx.x) / across * kOwnedRows, column = int32_t(blockIdx.x) % across;
      Tile tile(p, *reinterpret_cast<typename Tile::Shared*>(shared), image, row, column * kOwnedColumns, channel);
      tile.run(count);
      tile.write(count);
      __syncthreads();
    }
  }
}

// [B, rows, columns] of From -> [B, columns, rows] of To.
template <typename From, typename To>
__global__ void __launch_bounds__(kThreads)
    turn_kernel(const From* source, To* target, int64_t batch, int64_t rows, int64_t columns) {
  __shared__ From tile[kTurned][kTurned + 1];
  const int x = threadIdx.x % kTurned, y = threadIdx.x / kTurned;
  const int64_t tiles = (columns + kTurned - 1) / kTurned;
  const int64_t first_row = int64_t(blockIdx.x) / tiles * kTurned, first_column = int64_t(blockIdx.x) % tiles * kTurned;
  for (int64_t image = blockIdx.y; image < batch; image += gridDim.y) {
    for (int i = y; i < kTurned; i += kThreads / kTurned) {
      const int64_t row = first_row + i, column = first_column + x;
      if (row < rows && column < columns) tile[i][x] = source[(image * rows + row) * columns + column];
    }
    __syncthreads();
    for (int i = y; i < kTurned; i += kThreads / kTurned) {
      const int64_t row = first_row + x, column = first_column + i;
      if (row >= rows || column >= columns) continue;
      if constexpr (std::is_same_v<From, To>) {
        target[(image * columns + column) * rows + row] = tile[x][i];
      } else {
        target[(image * columns + column) * rows + row] = from_float<To>(tile[x][i]);
      }
    }
    __syncthreads();
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) round_kernel(const float* source, T* target, int64_t count) {
  const int64_t step = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    target[i] = from_float<T>(source[i]);
  }
}

template <typename From, typename To>
cudaError_t turn(const From* source, To* target, int64_t batch, int64_t rows, int64_t columns, cudaStream_t stream) {
  const int64_t tiles = ((rows + kTurned - 1) / kTurned) * ((columns + kTurned - 1) / kTurned);
  if (tiles == 0) return cudaSuccess;
  if (tiles > INT32_MAX) return cudaErrorInvalidValue;
  const dim3 grid(unsigned(tiles), unsigned(std::min<int64_t>(batch, kMaxGrid)));
  return launch_kernel(turn_kernel<From, To>, grid, dim3(kThreads), 0, stream, source, target, batch, rows, columns);
}

int64_t numbers(const Params& p) { return std::max<int64_t>(p.batch, 0) * map_of(p) * p.channels; }
size_t sum_size(const Params& p) { return p.x_type == kFloat64 ? 8 : 4; }
bool is_nhwc(const Params& p) { return p.x_layout == Layout::kNHWC; }
size_t copy_bytes(const Params& p) { return is_nhwc(p) ? 0 : aligned(numbers(p) * element_size(p.x_type)); }

size_t sums_bytes(const Params& p) {
  const bool in_place = is_nhwc(p) && element_size(p.x_type) == sum_size(p);
  return p.deterministic || in_place ? 0 : aligned(numbers(p) * sum_size(p));
}

bool is_supported(const Params& p) {
  const auto same = deform_conv::geometry_of(p, 0, 1, p.kernel_size[0], p.kernel_size[1]);
  return deform_conv::is_supported(same) && p.out_height >= 0 && p.out_width >= 0 &&
         p.taps == int64_t{p.kernel_size[0]} * p.kernel_size[1] && out_plane(p) <= INT32_MAX &&
         out_plane(p) * p.taps <= INT32_MAX / p.offset_group - kThreads * kSamples;
}

template <typename T, typename S, int kCount>
cudaError_t launch_columns(Problem problem, cudaStream_t stream) {
  const Params& p = problem.p;
  const int32_t pieces = (p.channels / p.offset_group + kCount - 1) / kCount;
  problem.lanes = 4;
  while (problem.lanes < 32 && problem.lanes < pieces) problem.lanes *= 2;
  const int64_t items = out_plane(p) * p.offset_group * p.taps, of_a_block = kThreads / problem.lanes * kSamples;
  const dim3 grid(unsigned((items + of_a_block - 1) / of_a_block), unsigned(std::min<int64_t>(p.batch, kMaxGrid)));
  return launch_kernel(columns_kernel<T, S, kCount>, grid, dim3(kThreads), 0, stream, problem);
}

template <typename T, typename S>
cudaError_t launch_owned(const Problem& problem, cudaStream_t stream) {
  const Params& p = problem.p;
  const auto parts = [](int64_t count, int64_t size) { return (count + size - 1) / size; };
  const int64_t tiles = parts(p.height, kOwnedRows) * parts(p.width, kOwnedColumns);
  const int64_t chunks = parts(p.channels / p.offset_group, kOwnedChannels) * p.offset_group;
  if (tiles == 0) return cudaSuccess;
  const auto limited = [](int64_t blocks) { return unsigned(std::min<int64_t>(blocks, kMaxGrid)); };
  return launch_kernel(owned_kernel<T, S>, dim3(unsigned(tiles), limited(chunks), limited(p.batch)), dim3(kThreads),
                       sizeof(typename OwnedTile<T, S>::Shared), stream, problem);
}

// The gradient of the features from their sums, which lie as NHWC.
template <typename T, typename S>
cudaError_t write_sums(const Problem& problem, cudaStream_t stream) {
  const Params& p = problem.p;
  const S* sums = static_cast<const S*>(problem.sums);
  T* target = static_cast<T*>(p.grad_x);
  if (!is_nhwc(p)) return turn(sums, target, p.batch, map_of(p), p.channels, stream);
  if constexpr (!std::is_same_v<T, S>) {
    const int64_t blocks = std::min<int64_t>((numbers(p) + kThreads - 1) / kThreads, kMaxGrid);
    if (blocks == 0) return cudaSuccess;
    return launch_kernel(round_kernel<T>, dim3(unsigned(blocks)), dim3(kThreads), 0, stream, sums, target, numbers(p));
  }
  return cudaSuccess;
}

template <typename T, typename S>
cudaError_t run(const Params& p, unsigned char* workspace, cudaStream_t stream) {
  constexpr int kCount = sizeof(T) == 8 ? 1 : 16 / sizeof(T);
  Problem problem{p, p.x, nullptr, 0};
  if (!is_nhwc(p)) {
    T* copy = reinterpret_cast<T*>(workspace);
    const T* x = static_cast<const T*>(p.x);
    if constexpr (sizeof(T) == 8) {
      UPSNET_RETURN_IF_ERROR(turn(x, copy, p.batch, p.channels, map_of(p), stream));
    } else {
      UPSNET_RETURN_IF_ERROR(transpose(x, copy, p.batch, p.channels, map_of(p), stream));
    }
    problem.features = copy;
  }
  if (!p.deterministic) {
    problem.sums = sums_bytes(p) > 0 ? static_cast<void*>(workspace + copy_bytes(p)) : p.grad_x;
    UPSNET_RETURN_IF_ERROR(cudaMemsetAsync(problem.sums, 0, numbers(p) * sizeof(S), stream));
  }
  const bool whole = p.channels / p.offset_group % kCount == 0 && is_aligned(problem.features, 16) &&
                     is_aligned(p.grad_columns, 16) && is_aligned(p.columns, 16) && is_aligned(problem.sums, 16);
  const auto launch_teams = whole ? launch_columns<T, S, kCount> : launch_columns<T, S, 1>;
  UPSNET_RETURN_IF_ERROR(launch_teams(problem, stream));
  return p.deterministic ? launch_owned<T, S>(problem, stream) : write_sums<T, S>(problem, stream);
}

}  // namespace

size_t workspace_size(const Params& p) {
  if (p.batch <= 0 || p.channels <= 0 || p.height <= 0 || p.width <= 0) return 0;
  return copy_bytes(p) + sums_bytes(p);
}

int launch(const Params& p, void* workspace, size_t bytes, CUstream_st* stream) {
  if (!is_supported(p) || bytes < workspace_size(p)) return cudaErrorInvalidValue;
  if (!has_aligned_pointers(p) || !is_aligned(workspace, 16)) return cudaErrorMisalignedAddress;
  if (p.batch == 0) return cudaSuccess;
  if (out_plane(p) == 0) return cudaMemsetAsync(p.grad_x, 0, numbers(p) * element_size(p.x_type), stream);
  unsigned char* memory = static_cast<unsigned char*>(workspace);
  switch (p.x_type) {
    case DType::kFloat32: return run<float, float>(p, memory, stream);
    case DType::kFloat16: return run<Half, float>(p, memory, stream);
    case DType::kBFloat16: return run<BFloat16, float>(p, memory, stream);
    default: return run<double, double>(p, memory, stream);
  }
}

}  // namespace upsnet::deform_conv_columns

UPSNET_EXPORT_CUDA(deform_conv_columns)
