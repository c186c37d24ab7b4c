// float, half and bfloat16 as one: to_float(value) and from_float<T>(value), on the device and on the host.
//
// Under nvcc the 16-bit types are CUDA's own; elsewhere (CPU front, emulator) they are two small structs with the same
// bits and the same rounding (nearest, ties to even).
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define UPSNET_HD __host__ __device__ __forceinline__
#else
#define UPSNET_HD inline __attribute__((always_inline))
#endif

namespace upsnet {

#ifdef __CUDACC__

using Half = __half;
using BFloat16 = __nv_bfloat16;

UPSNET_HD float to_float(Half value) { return __half2float(value); }
UPSNET_HD float to_float(BFloat16 value) { return __bfloat162float(value); }

template <typename T>
UPSNET_HD T from_float(float value);
template <>
UPSNET_HD Half from_float<Half>(float value) {
  return __float2half_rn(value);
}
template <>
UPSNET_HD BFloat16 from_float<BFloat16>(float value) {
  return __float2bfloat16_rn(value);
}

#else

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

UPSNET_HD float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

UPSNET_HD uint32_t bits_of_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

UPSNET_HD float to_float(BFloat16 value) { return float_of_bits(uint32_t{value.bits} << 16); }

UPSNET_HD float to_float(Half value) {
  const uint32_t sign = uint32_t(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_of_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);  // inf, NaN
  // Exponent and mantissa moved into place, then rebased by 2^112: exact for subnormal halves too.
  return float_of_bits(sign | bits_of_float(float_of_bits(magnitude << 13) * 0x1p112f));
}

template <typename T>
UPSNET_HD T from_float(float value);

template <>
UPSNET_HD BFloat16 from_float<BFloat16>(float value) {
  const uint32_t bits = bits_of_float(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {uint16_t(bits >> 16 | 0x40u)};
  return {uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

template <>
UPSNET_HD Half from_float<Half>(float value) {
  const uint32_t bits = bits_of_float(value);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {uint16_t(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {uint16_t(sign | 0x7c00u)};  // rounds to 65536 or more
  if (magnitude < 0x38800000u) {                                    // subnormal half: the addition rounds at bit 2^-24
    const float shifted = float_of_bits(magnitude) + 0.5f;
    return {uint16_t(sign | (bits_of_float(shifted) - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  return {uint16_t(sign | (rounded - 0x38000000u) >> 13)};
}

#endif

// a * b, rounded: no compiler fuses it with a sum, which would round once less. For what a comparison decides about.
UPSNET_HD float product(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  float value = a * b;
  asm("" : "+m"(value));
  return value;
#endif
}
UPSNET_HD double product(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dmul_rn(a, b);
#else
  double value = a * b;
  asm("" : "+m"(value));
  return value;
#endif
}

UPSNET_HD float to_float(float value) { return value; }
template <>
UPSNET_HD float from_float<float>(float value) {
  return value;
}

// T to S and back: S is double for double, else float.
template <typename S, typename T>
UPSNET_HD S widened(T value) {
  if constexpr (std::is_same_v<T, S>) {
    return value;
  } else {
    return to_float(value);
  }
}

template <typename T, typename S>
UPSNET_HD T narrowed(S value) {
  if constexpr (std::is_same_v<T, S>) {
    return value;
  } else {
    return from_float<T>(value);
  }
}

}  // namespace upsnet
