// Under channels.cuh: comparisons of logits as they come, two channels at a time where they have 16 bits.
#pragma once

#include <type_traits>

#include "panoptic_fusion/workspace.cuh"

namespace upsnet::panoptic_fusion {

// Four bytes of logits: kSides of T, the first one in the low bits. Of numbers within the bounds, which `exceeds`
// denies.
template <typename T>
struct Packed {
  static constexpr int kSides = 2;
  static constexpr float kMost = std::is_same_v<T, Half> ? 65504.0f : kLogitLimit;  // what is finite is bounded

#ifdef __CUDACC__
  using Vector = std::conditional_t<std::is_same_v<T, Half>, __half2, __nv_bfloat162>;

  static __device__ Vector vector(unsigned word) { return *reinterpret_cast<Vector*>(&word); }
  static __device__ unsigned word(Vector vector) { return *reinterpret_cast<unsigned*>(&vector); }
  static __device__ unsigned pack(const T (&sides)[2]) { return word(Vector(sides[0], sides[1])); }
  static __device__ unsigned all(float value) { return word(Vector(from_float<T>(value), from_float<T>(value))); }
  static __device__ unsigned least(unsigned a, unsigned b) { return word(__hmin2(vector(a), vector(b))); }
  static __device__ unsigned most(unsigned a, unsigned b) { return word(__hmax2(vector(a), vector(b))); }
  static __device__ unsigned at_least(unsigned a, unsigned b) { return __hge2_mask(vector(a), vector(b)); }
  static __device__ bool exceeds(unsigned a) { return !__hble2(__habs2(vector(a)), vector(all(kMost))); }
#else
  template <typename Choose>
  static unsigned each(unsigned a, unsigned b, Choose choose) {
    unsigned result = 0;
    for (int bit = 0; bit < 32; bit += 16) {
      const uint16_t x = uint16_t(a >> bit), y = uint16_t(b >> bit);
      result |= unsigned(choose(to_float(T{x}), to_float(T{y})) ? x : y) << bit;
    }
    return result;
  }
  static unsigned pack(const T (&sides)[2]) { return sides[0].bits | unsigned(sides[1].bits) << 16; }
  static unsigned all(float value) { return from_float<T>(value).bits * 0x10001u; }
  static unsigned least(unsigned a, unsigned b) {
    return each(a, b, [](float x, float y) { return x < y; });
  }
  static unsigned most(unsigned a, unsigned b) {
    return each(a, b, [](float x, float y) { return x > y; });
  }
  static unsigned at_least(unsigned a, unsigned b) {
    return side_at_least(a, b) | side_at_least(a >> 16, b >> 16) << 16;
  }
  static unsigned side_at_least(unsigned a, unsigned b) {
    return to_float(T{uint16_t(a)}) >= to_float(T{uint16_t(b)}) ? 0xffffu : 0u;
  }
  static bool exceeds(unsigned a) { return !within(a) || !within(a >> 16); }
  static bool within(unsigned a) { return std::fabs(to_float(T{uint16_t(a)})) <= kMost; }
#endif
};

template <>
struct Packed<float> {
  static constexpr int kSides = 1;

  static __device__ unsigned pack(const float (&sides)[1]) { return __float_as_uint(sides[0]); }
  static __device__ unsigned all(float value) { return __float_as_uint(value); }
  static __device__ unsigned least(unsigned a, unsigned b) {
    return __float_as_uint(lower(__uint_as_float(a), __uint_as_float(b)));
  }
  static __device__ unsigned most(unsigned a, unsigned b) {
    return __float_as_uint(higher(__uint_as_float(a), __uint_as_float(b)));
  }
  static __device__ unsigned at_least(unsigned a, unsigned b) {
    return __uint_as_float(a) >= __uint_as_float(b) ? ~0u : 0u;
  }
  static __device__ bool exceeds(unsigned a) { return !(fabsf(__uint_as_float(a)) <= kLogitLimit); }
};

}  // namespace upsnet::panoptic_fusion
