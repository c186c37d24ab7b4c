// The matrix units and their feeding: mma.sync.m16n8k16, cp.async; and what stands for them before sm_80.
//
// Without nvcc (emulator) the same functions move the same values between the lanes by the fragment layouts that the
// PTX manual documents, so a kernel that indexes its fragments wrongly gives wrong results there too. A lane is
// 4 * g + t; every 32-bit register holds two 16-bit elements, the lower index in the lower half:
//
//   a[0] row g      k 2t, 2t+1        b[0] k 2t, 2t+1     column g        c[0], c[1] row g      columns 2t, 2t+1
//   a[1] row g + 8  k 2t, 2t+1        b[1] k 2t+8, 2t+9   column g        c[2], c[3] row g + 8  columns 2t, 2t+1
//   a[2] row g      k 2t+8, 2t+9
//   a[3] row g + 8  k 2t+8, 2t+9
#pragma once

#include <type_traits>

#include "common/cuda.h"

namespace upsnet {

#ifndef __CUDACC__
// c += a b by the layouts above, over the first kDepth values of k.
template <typename T, int kDepth>
void emulated_mma(float (&c)[4], const uint32_t* a, const uint32_t* b) {
  struct Registers {
    const uint32_t *a, *b;
  };
  struct Sums {
    float value[4];
  };
  const Registers own{a, b};
  const auto element = [](uint32_t pair, unsigned k) { return to_float(T{uint16_t(k % 2 ? pair >> 16 : pair)}); };
  const Sums sums = emulator::collective(0xffffffffu, emulator::to_word(&own), [&] {
    const auto of_lane = [](unsigned lane) { return emulator::from_word<const Registers*>(emulator::warp_slot(lane)); };
    const unsigned g = emulator::lane() / 4, t = emulator::lane() % 4;
    Sums result{{c[0], c[1], c[2], c[3]}};
    for (unsigned k = 0; k < kDepth; ++k) {
      const Registers& row = *of_lane(g * 4 + k % 8 / 2);
      for (unsigned i = 0; i < 4; ++i) {
        const Registers& column = *of_lane((2 * t + i % 2) * 4 + k % 8 / 2);
        result.value[i] += element(row.a[k / 8 * 2 + i / 2], k) * element(column.b[k / 8], k);
      }
    }
    return result;
  });
  for (int i = 0; i < 4; ++i) c[i] = sums.value[i];
}
#endif

#ifdef UPSNET_BEFORE_SM_80

// c[16 x 8] += a[16 x 8] b[8 x 8]: a[0], a[1] and b[0] of the fragments above.
__device__ __forceinline__ void mma_16x8x8(float (&c)[4], const uint32_t* a, const uint32_t* b) {
#ifdef __CUDACC__
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(b[0]));
#else
  emulated_mma<Half, 8>(c, a, b);
#endif
}

// These matrix units know no bfloat16: its products are multiply-adds. It is right, and slower than float. A function
// of its own: a hundred of them in one kernel would take the compiler many minutes.
#ifdef __CUDACC__
__device__ __noinline__
#else
inline
#endif
    float4 mma_of_bfloat16(float4 c, uint4 rows, uint2 columns) {
  const auto low = [](uint32_t pair) { return __uint_as_float(pair << 16); };
  const auto high = [](uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); };
  const uint32_t a[4] = {rows.x, rows.y, rows.z, rows.w}, b[2] = {columns.x, columns.y};
  const int lane = threadIdx.x % 32, row = lane / 4 * 4, column = lane % 4 * 8;  // first lane of each
#pragma unroll
  for (int k = 0; k < 2; ++k) {
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const uint32_t upper = __shfl_sync(~0u, a[2 * k], row + t), lower = __shfl_sync(~0u, a[2 * k + 1], row + t);
      const uint32_t left = __shfl_sync(~0u, b[k], column + t), right = __shfl_sync(~0u, b[k], column + 4 + t);
      const auto add = [&](float& sum, uint32_t x, uint32_t y) {
        sum += low(x) * low(y);
        sum += high(x) * high(y);
      };
      add(c.x, upper, left);
      add(c.y, upper, right);
      add(c.z, lower, left);
      add(c.w, lower, right);
    }
  }
  return c;
}

template <typename T>
__device__ __forceinline__ void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, Half>) {
    mma_16x8x8(c, a, b);
    mma_16x8x8(c, a + 2, b + 1);
  } else {
    static_assert(std::is_same_v<T, BFloat16>);
    const float4 sums = mma_of_bfloat16(make_float4(c[0], c[1], c[2], c[3]), make_uint4(a[0], a[1], a[2], a[3]),
                                        make_uint2(b[0], b[1]));
    c[0] = sums.x, c[1] = sums.y, c[2] = sums.z, c[3] = sums.w;
  }
}

#else

// c[16 x 8] += a[16 x 16] b[16 x 8], T = Half or BFloat16, sums in float.
template <typename T>
__device__ __forceinline__ void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef __CUDACC__
  if constexpr (std::is_same_v<T, Half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    static_assert(std::is_same_v<T, BFloat16>);
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#else
  emulated_mma<T, 16>(c, a, b);
#endif
}

#endif

// Starts copying 16 bytes (both addresses aligned to 16) to shared memory; there after wait_for_copies and a barrier.
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
#ifdef UPSNET_BEFORE_SM_80
  *static_cast<uint4*>(shared) = __ldg(static_cast<const uint4*>(global));
#elif defined(__CUDACC__)
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
#else
  std::memcpy(shared, global, 16);
#endif
}

__device__ __forceinline__ void wait_for_copies() {
#if defined(__CUDACC__) && !defined(UPSNET_BEFORE_SM_80)
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Two floats, rounded, in one register: `low` in the lower half.
template <typename T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
#ifdef __CUDACC__
  if constexpr (std::is_same_v<T, Half>) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
#else
  return uint32_t{from_float<T>(high).bits} << 16 | from_float<T>(low).bits;
#endif
}

}  // namespace upsnet
