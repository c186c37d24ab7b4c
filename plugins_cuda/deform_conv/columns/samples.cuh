// One sample of the gradient of a deformable convolution, by a team of lanes.
#pragma once

#include "deform_conv/columns/problem.h"

namespace upsnet::deform_conv_columns {

// kCount numbers of T that lie side by side: 16 bytes in one access, or one number.
template <typename T, int kCount>
struct Piece {
  T value[kCount];

  __device__ __forceinline__ static Piece read(const T* source) {
    Piece piece;
    if constexpr (kCount == 1) {
      piece.value[0] = __ldg(source);
    } else {
      const uint4 bits = __ldg(reinterpret_cast<const uint4*>(source));
      memcpy(&piece, &bits, sizeof piece);
    }
    return piece;
  }

  __device__ __forceinline__ void write(T* target) const {
    if constexpr (kCount == 1) {
      *target = value[0];
    } else {
      uint4 bits;
      memcpy(&bits, this, sizeof bits);
      *reinterpret_cast<uint4*>(target) = bits;
    }
  }
};

// target[0 .. kCount - 1] += weight * value, in any order.
template <typename S, typename T, int kCount>
__device__ __forceinline__ void add(S* target, S weight, const Piece<T, kCount>& piece) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  constexpr bool kFourAtOnce = kCount % 4 == 0 && sizeof(S) == 4;
#else
  constexpr bool kFourAtOnce = false;
#endif
  if constexpr (kFourAtOnce) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const float a = weight * to_float(piece.value[i]), b = weight * to_float(piece.value[i + 1]);
      const float c = weight * to_float(piece.value[i + 2]), d = weight * to_float(piece.value[i + 3]);
#ifdef __CUDA_ARCH__
      asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(target + i), "f"(a), "f"(b), "f"(c), "f"(d)
                   : "memory");
#endif
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) atomicAdd(target + i, weight * widened<S>(piece.value[i]));
  }
}

// The sums over a team's lanes, in the order of a tree; every lane of the warp calls it, and gets its team's. Lanes
// first share out the four sums, so that ten shuffles do the work of twenty.
template <typename S>
__device__ __forceinline__ Moments<S> sum_over_team(Moments<S> own, int lanes) {
  const int lane = threadIdx.x % 32;
  const bool odd = lane & 1, second = lane & 2;
  const S one = (odd ? own.left : own.top) + __shfl_xor_sync(~0u, odd ? own.top : own.left, 1);
  const S other = (odd ? own.corner : own.bottom) + __shfl_xor_sync(~0u, odd ? own.bottom : own.corner, 1);
  S sum = (second ? other : one) + __shfl_xor_sync(~0u, second ? one : other, 2);
  for (int step = 4; step < lanes; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
  return {__shfl_sync(~0u, sum, 0, 4), __shfl_sync(~0u, sum, 2, 4), __shfl_sync(~0u, sum, 1, 4),
          __shfl_sync(~0u, sum, 3, 4)};
}

// Reads every corner once: writes the sample, adds to the corners' gradients, and sums the moments of a lane's
// channels.
template <typename T, typename S, int kCount>
class Sample {
 public:
  using Own = Piece<T, kCount>;

  // places: the first channel of the sample's group in [B, H, W, C] for every corner, -1 off the map.
  __device__ Sample(const Problem& problem, const Point<S>& point, S mask, int64_t image, int32_t channel)
      : features_(static_cast<const T*>(problem.features)), sums_(static_cast<S*>(problem.sums)) {
    weights_of(point, mask, weight_);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int64_t pixel = image * map_of(problem.p) + point.pixel[k];
      place_[k] = point.pixel[k] < 0 ? -1 : pixel * problem.p.channels + channel;
    }
  }

  // One piece of the channels, the first of which is channel `c` of the group.
  __device__ __forceinline__ void visit(const T* gradient, T* column, int32_t c, Moments<S>& moments) const {
    Own corner[4];
    const Own own = Own::read(gradient + c);
#pragma unroll
    for (int k = 0; k < 4; ++k) corner[k] = place_[k] < 0 ? Own{} : Own::read(features_ + place_[k] + c);
    Own sample;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const S g = widened<S>(own.value[i]), v0 = widened<S>(corner[0].value[i]), v1 = widened<S>(corner[1].value[i]);
      const S v2 = widened<S>(corner[2].value[i]), v3 = widened<S>(corner[3].value[i]);
      moments.top += g * (v1 - v0), moments.bottom += g * (v3 - v2);
      moments.left += g * (v2 - v0), moments.corner += g * v0;
      sample.value[i] = narrowed<T>(weight_[0] * v0 + weight_[1] * v1 + weight_[2] * v2 + weight_[3] * v3);
    }
    sample.write(column + c);
    if (sums_ == nullptr) return;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (place_[k] >= 0) add(sums_ + place_[k] + c, weight_[k], own);
    }
  }

 private:
  const T* features_;
  S* sums_;
  S weight_[4];
  int64_t place_[4];
};

}  // namespace upsnet::deform_conv_columns
