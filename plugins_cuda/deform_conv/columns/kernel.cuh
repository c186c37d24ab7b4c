// What lies between the two matrix products of a deformable convolution's gradient, sample by sample.
//
// visit_samples: a warp has one output pixel of one offset group, and goes through its taps. Lanes are channels, in
// vectors of 16 bytes: the four corners are read once, which gives the sample (for the gradient of the weights), what
// the gradients of offset and mask want (sums over the channels, by shuffles), and what the corners' own gradients get.
// These are added to a map of sums, by vectors where the GPU has such an instruction (sm_90).
//
// own_tiles: the same sums without an atomic addition, in the same order each time. A block owns some pixels and
// channels of the gradient; it looks through all taps of all output pixels, in their order, for those that sample its
// pixels. To look costs more than to add: the price of an order.
#pragma once

#include "common/pack.cuh"
#include "deform_conv/backward/point.h"
#include "deform_conv/columns/launch.h"

namespace upsnet::deform_conv_columns {

using deform_conv::Moments;
using deform_conv::Point;

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kTile = 8, kTilePixels = kTile * kTile;  // rows and columns of a map that a block owns
constexpr int kOwners = 128;                           // its threads, and its channels

// A map [batch][pixel][channel], whose steps are in elements: of grad_x in both layouts, and of x.
template <typename T>
struct Map {
  T* data;
  int64_t pixel, channel;  // from one to the next
};

// From the top left corner of a sample, with the mask; nowhere where it lies off the map.
template <typename Real>
struct Tap {
  Point<Real> point;
  Real mask;
  int64_t shift;  // where the offset's first number stands, of offset and grad_offset; the mask's stands at `index`
  int64_t index;
};

template <typename Real>
__device__ __forceinline__ Tap<Real> tap_of(const Params& p, int64_t image, int group, int tap, int64_t place) {
  const int64_t plane = int64_t{p.out_height} * p.out_width;
  const int row = int(place / p.out_width), column = int(place % p.out_width);
  const int64_t index = (image * p.offset_group + group) * (p.kernel_size[0] * p.kernel_size[1]) + tap;
  Tap<Real> found;
  found.shift = 2 * index * plane + place;
  found.index = index * plane + place;
  const Real* const offset = static_cast<const Real*>(p.offset) + found.shift;
  const int down = tap / p.kernel_size[1] * p.dilation[0], right = tap % p.kernel_size[1] * p.dilation[1];
  const Real y = Real(row * p.stride[0] - p.padding[0] + down) + __ldg(offset);
  const Real x = Real(column * p.stride[1] - p.padding[1] + right) + __ldg(offset + plane);
  found.point = deform_conv::point_at(y, x, p.height, p.width);
  found.mask = p.mask ? __ldg(static_cast<const Real*>(p.mask) + found.index) : Real(1);
  return found;
}

template <typename Real>
struct Corners {
  Real weight[4];  // without the mask

  __device__ __forceinline__ explicit Corners(const Point<Real>& at) {
    const Real up = Real(1) - at.down, left = Real(1) - at.right;
    weight[0] = up * left, weight[1] = up * at.right, weight[2] = at.down * left, weight[3] = at.down * at.right;
  }
};

template <typename Real>
__device__ __forceinline__ Real warp_sum(Real value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

template <int kCount, typename Real>
__device__ __forceinline__ void add_at(Real* target, const Real (&values)[kCount]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (std::is_same_v<Real, float> && kCount % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      atomicAdd(reinterpret_cast<float4*>(target + i),
                make_float4(values[i], values[i + 1], values[i + 2], values[i + 3]));
    }
  } else
#endif
  {
#pragma unroll
    for (int i = 0; i < kCount; ++i) atomicAdd(target + i, values[i]);
  }
}

template <typename T>
__device__ __forceinline__ T rounded(SumOf<T> value) {
  if constexpr (std::is_same_v<T, double>) {
    return value;
  } else {
    return from_float<T>(value);
  }
}

// Grid: warps of output pixels x offset groups. kVector > 1: the channels of a pixel lie side by side, in whole
// vectors. sums: of the gradient of x; no data where another kernel adds them.
template <typename T, int kVector>
__global__ void __launch_bounds__(kThreads) visit_samples(Params p, Map<const T> x, Map<SumOf<T>> sums) {
  using Real = SumOf<T>;
  const int lane = threadIdx.x % 32, group = blockIdx.y, taps = p.kernel_size[0] * p.kernel_size[1];
  const int channels = p.channels / p.offset_group, first = group * channels;
  const int64_t plane = int64_t{p.out_height} * p.out_width, map = int64_t{p.height} * p.width * p.channels;
  const int64_t steps = int64_t{gridDim.x} * kWarps;
  for (int64_t pixel = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32; pixel < p.batch * plane; pixel += steps) {
    const int64_t image = pixel / plane, place = pixel % plane;
    for (int tap = 0; tap < taps; ++tap) {
      const Tap<Real> at = tap_of<Real>(p, image, group, tap, place);
      const Corners<Real> corners(at.point);
      const int64_t column = (pixel * taps + tap) * p.channels + first;
      Moments<Real> moments{};
      for (int c = lane * kVector; c < channels; c += 32 * kVector) {
        Pack<T, kVector> grad, sample, corner[4];
        grad.load(static_cast<const T*>(p.grad_columns) + column + c);
        Real value[4][kVector];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const int32_t there = at.point.pixel[k];
          if (there >= 0) corner[k].load(x.data + image * map + there * x.pixel + (first + c) * x.channel);
#pragma unroll
          for (int i = 0; i < kVector; ++i) value[k][i] = there >= 0 ? corner[k].widened(i) : Real(0);
        }
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
          const Real slope = grad.widened(i);
          moments.top += slope * (value[1][i] - value[0][i]);
          moments.bottom += slope * (value[3][i] - value[2][i]);
          moments.left += slope * (value[2][i] - value[0][i]);
          moments.corner += slope * value[0][i];
          Real blend = 0;
#pragma unroll
          for (int k = 0; k < 4; ++k) blend += corners.weight[k] * value[k][i];
          sample.set(i, rounded<T>(at.mask * blend));
        }
        *reinterpret_cast<Pack<T, kVector>*>(static_cast<T*>(p.columns) + column + c) = sample;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const int32_t there = at.point.pixel[k];
          if (sums.data == nullptr || there < 0) continue;
          Real share[kVector];
#pragma unroll
          for (int i = 0; i < kVector; ++i) share[i] = corners.weight[k] * at.mask * grad.widened(i);
          add_at(sums.data + image * map + there * sums.pixel + (first + c) * sums.channel, share);
        }
      }
      const Moments<Real> all{warp_sum(moments.top), warp_sum(moments.bottom), warp_sum(moments.left),
                              warp_sum(moments.corner)};
      if (lane > 0) continue;
      Real* const grad_offset = static_cast<Real*>(p.grad_offset) + at.shift;
      grad_offset[0] = at.mask * all.down(at.point.right);
      grad_offset[plane] = at.mask * all.right(at.point.down);
      if (p.mask) static_cast<Real*>(p.grad_mask)[at.index] = all.sample(at.point.down, at.point.right);
    }
  }
}

// Grid: tiles x groups of kOwners channels of an offset group x images.
template <typename T>
__global__ void __launch_bounds__(kOwners) own_tiles(Params p, Map<T> target) {
  using Real = SumOf<T>;
  struct Hit {
    int64_t column;  // of grad_columns
    int pixel[4];    // of the tile; -1: none
    Real weight[4];
  };
  UPSNET_DYNAMIC_SHARED(memory);
  __shared__ Hit hits[kOwners];
  __shared__ int counts[kOwners / 32];
  Real* const sums = reinterpret_cast<Real*>(memory);  // [pixel][channel]
  const int channels = p.channels / p.offset_group, parts = (channels + kOwners - 1) / kOwners;
  const int group = blockIdx.y / parts, own = blockIdx.y % parts * kOwners + threadIdx.x;
  const int channel = group * channels + own, taps = p.kernel_size[0] * p.kernel_size[1];
  const int across = (p.width + kTile - 1) / kTile;
  const int top = blockIdx.x / across * kTile, left = blockIdx.x % across * kTile;
  const int64_t plane = int64_t{p.out_height} * p.out_width, map = int64_t{p.height} * p.width * p.channels;
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int64_t image = blockIdx.z; image < p.batch; image += gridDim.z) {
    for (int i = 0; i < kTilePixels; ++i) sums[i * kOwners + threadIdx.x] = 0;
    for (int64_t begin = 0; begin < plane * taps; begin += kOwners) {
      Hit hit{};
      bool is_hit = false;
      if (begin + threadIdx.x < plane * taps) {
        const int64_t place = (begin + threadIdx.x) / taps;
        const int tap = int((begin + threadIdx.x) % taps);
        const Tap<Real> at = tap_of<Real>(p, image, group, tap, place);
        const Corners<Real> corners(at.point);
        hit.column = ((image * plane + place) * taps + tap) * p.channels;
        for (int k = 0; k < 4; ++k) {
          const int there = at.point.pixel[k], row = there / p.width - top, column = there % p.width - left;
          const bool is_own = there >= 0 && row >= 0 && row < kTile && column >= 0 && column < kTile;
          hit.pixel[k] = is_own ? row * kTile + column : -1;
          hit.weight[k] = corners.weight[k] * at.mask;
          is_hit |= is_own;
        }
      }
      const unsigned votes = __ballot_sync(~0u, is_hit);
      if (lane == 0) counts[warp] = __popc(votes);
      __syncthreads();
      int before = 0, all = 0;
      for (unsigned other = 0; other < kOwners / 32; ++other) {
        if (other < warp) before += counts[other];
        all += counts[other];
      }
      if (is_hit) hits[before + __popc(votes & ((1u << lane) - 1))] = hit;
      __syncthreads();
      for (int i = 0; i < all && own < channels; ++i) {
        const T* const grad = static_cast<const T*>(p.grad_columns) + hits[i].column + channel;
        Pack<T, 1> read;
        read.load(grad);
        for (int k = 0; k < 4; ++k) {
          if (hits[i].pixel[k] < 0) continue;
          sums[hits[i].pixel[k] * kOwners + threadIdx.x] += hits[i].weight[k] * read.widened(0);
        }
      }
      __syncthreads();
    }
    for (int i = 0; i < kTilePixels && own < channels; ++i) {
      const int row = top + i / kTile, column = left + i % kTile;
      if (row >= p.height || column >= p.width) continue;
      const int64_t pixel = int64_t{row} * p.width + column;
      target.data[image * map + pixel * target.pixel + channel * target.channel] =
          rounded<T>(sums[i * kOwners + threadIdx.x]);
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) round_sums(const float* sums, T* target, int64_t count) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += int64_t{gridDim.x} * kThreads) {
    target[i] = from_float<T>(sums[i]);
  }
}

}  // namespace upsnet::deform_conv_columns
