// Sums of weighted pixels, a vector of channels a thread: forward over a map, for a bin; backward over a box's bins,
// for a pixel.
#pragma once

#include "common/pack.cuh"
#include "roi_align_fpn/kernel.cuh"

namespace upsnet::roi_align_fpn {

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
