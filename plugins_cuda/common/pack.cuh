// Elements that a thread reads or writes at once, and the type that they are summed in.
#pragma once

#include <cstring>
#include <type_traits>

#include "common/cuda.h"

namespace upsnet {

template <typename T>
using SumOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

// What a thread reads or writes at once. Held as words: 16-bit members would cost a register each.
template <typename T, int kVector>
struct alignas(sizeof(T) * kVector) Pack {
  using Word = std::conditional_t<(sizeof(T) * kVector > 4), uint32_t, T>;
  Word words[sizeof(T) * kVector / sizeof(Word)];

  __device__ __forceinline__ void load(const void* source) {
    using Whole = std::conditional_t<sizeof(words) == sizeof(uint4), uint4, T>;
    const Whole whole = __ldg(static_cast<const Whole*>(source));
    std::memcpy(words, &whole, sizeof words);
  }
  __device__ __forceinline__ T value(int index) const {
    T result;
    std::memcpy(&result, reinterpret_cast<const unsigned char*>(words) + index * sizeof(T), sizeof result);
    return result;
  }
  // value(index), widened. A bfloat16 is the upper half of a float: one instruction, of which nvcc makes two.
  __device__ __forceinline__ SumOf<T> widened(int index) const {
    if constexpr (std::is_same_v<T, double>) {
      return value(index);
    } else if constexpr (std::is_same_v<T, BFloat16> && std::is_same_v<Word, uint32_t>) {
      return __uint_as_float(index % 2 == 0 ? words[index / 2] << 16 : words[index / 2] & 0xffff0000u);
    } else {
      return to_float(value(index));
    }
  }
  __device__ __forceinline__ void set(int index, T value) {
    std::memcpy(reinterpret_cast<unsigned char*>(words) + index * sizeof(T), &value, sizeof value);
  }
};

}  // namespace upsnet
