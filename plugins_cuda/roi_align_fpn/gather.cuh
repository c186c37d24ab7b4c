// Sums of weighted pixels, a vector of channels a thread: forward over a map, for a bin; backward over a box's bins,
// for a pixel.
#pragma once

#include <cstring>
#include <type_traits>

#include "common/cuda.h"
#include "roi_align_fpn/kernel.cuh"

namespace upsnet::roi_align_fpn {

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

// A map of one image, at the channels of a thread.
struct Map {
  const unsigned char* data;
  unsigned width;
  unsigned pitch;  // bytes from pixel to pixel
};

// Adds rows x kColumns pixels, weighted, to sum.
template <typename T, int kColumns, int kVector>
__device__ __forceinline__ void add_pixels(Map map, const TapOf<SumOf<T>>* rows, int row_count,
                                           const TapOf<SumOf<T>>* columns, SumOf<T> (&sum)[kVector]) {
  uint64_t offset[kColumns];
  SumOf<T> weight[kColumns];
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    offset[i] = uint64_t{unsigned(columns[i].index)} * map.pitch;
    weight[i] = columns[i].weight;
  }
#pragma unroll 1
  for (; row_count > 0; --row_count) {
    const TapOf<SumOf<T>> row = *rows++;
    const unsigned char* pixels = map.data + uint64_t{row.index * map.width} * map.pitch;
    Pack<T, kVector> read[kColumns];
#pragma unroll
    for (int i = 0; i < kColumns; ++i) read[i].load(pixels + offset[i]);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const SumOf<T> both = row.weight * weight[i];
#pragma unroll
      for (int k = 0; k < kVector; ++k) sum[k] += both * read[i].widened(k);
    }
  }
}

// Adds all of them, four columns at a time. Where a warp has one bin, all of its threads branch alike.
template <typename T, int kVector>
__device__ __forceinline__ void add_bin(Map map, const TapOf<SumOf<T>>* rows, int row_count,
                                        const TapOf<SumOf<T>>* columns, int left, SumOf<T> (&sum)[kVector]) {
  for (; left >= 4; left -= 4, columns += 4) add_pixels<T, 4>(map, rows, row_count, columns, sum);
  if (left == 3) {
    add_pixels<T, 3>(map, rows, row_count, columns, sum);
  } else if (left == 2) {
    add_pixels<T, 2>(map, rows, row_count, columns, sum);
  } else if (left == 1) {
    add_pixels<T, 1>(map, rows, row_count, columns, sum);
  }
}

}  // namespace upsnet::roi_align_fpn
