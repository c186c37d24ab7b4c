// Sum, least and greatest of one int of every lane in `mask`; all of these lanes call it and get it.
#pragma once

#include "common/cuda.h"

namespace upsnet {

#ifdef UPSNET_BEFORE_SM_80  // has no such instructions

template <typename Combine>
__device__ __forceinline__ int combined(unsigned mask, int value, Combine combine) {
  if (mask == ~0u) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) value = combine(value, __shfl_xor_sync(~0u, value, step));
    return value;
  }
  int result = __shfl_sync(mask, value, __ffs(mask) - 1);
  for (unsigned left = mask & (mask - 1); left != 0; left &= left - 1) {
    result = combine(result, __shfl_sync(mask, value, __ffs(left) - 1));
  }
  return result;
}

__device__ __forceinline__ int warp_add(unsigned mask, int value) {
  return combined(mask, value, [](int a, int b) { return a + b; });
}
__device__ __forceinline__ int warp_min(unsigned mask, int value) {
  return combined(mask, value, [](int a, int b) { return min(a, b); });
}
__device__ __forceinline__ int warp_max(unsigned mask, int value) {
  return combined(mask, value, [](int a, int b) { return max(a, b); });
}

#else

__device__ __forceinline__ int warp_add(unsigned mask, int value) { return __reduce_add_sync(mask, value); }
__device__ __forceinline__ int warp_min(unsigned mask, int value) { return __reduce_min_sync(mask, value); }
__device__ __forceinline__ int warp_max(unsigned mask, int value) { return __reduce_max_sync(mask, value); }

#endif

}  // namespace upsnet
