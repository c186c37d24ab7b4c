// [batch, rows, columns] -> [batch, columns, rows], through shared memory so that both sides are read and written in
// whole sectors. Brings NCHW maps (rows = C, columns = H * W) to NHWC and back.
#pragma once

#include <cstdint>

#include "common/cuda.h"

namespace upsnet {

constexpr int kTransposeTile = 32, kTransposeRows = 8;

template <typename T>
__global__ void __launch_bounds__(kTransposeTile* kTransposeRows)
    transpose_kernel(const T* __restrict__ input, T* __restrict__ output, int64_t rows, int64_t columns) {
  __shared__ T tile[kTransposeTile][kTransposeTile + 1];
  // There are no more tiles than blocks: numbers of 32 bits, whose division is some ten times as fast.
  const auto tiles_x = static_cast<unsigned>((columns + kTransposeTile - 1) / kTransposeTile);
  const auto tiles_y = static_cast<unsigned>((rows + kTransposeTile - 1) / kTransposeTile);
  const unsigned row = blockIdx.x / tiles_x;
  const int64_t left = int64_t{blockIdx.x % tiles_x} * kTransposeTile;
  const int64_t top = int64_t{row % tiles_y} * kTransposeTile;
  const int64_t image = int64_t{row / tiles_y} * rows * columns;
  const int lane = threadIdx.x;
#pragma unroll
  for (int i = threadIdx.y; i < kTransposeTile; i += kTransposeRows) {
    if (top + i < rows && left + lane < columns) tile[i][lane] = input[image + (top + i) * columns + left + lane];
  }
  __syncthreads();
#pragma unroll
  for (int i = threadIdx.y; i < kTransposeTile; i += kTransposeRows) {
    if (left + i < columns && top + lane < rows) output[image + (left + i) * rows + top + lane] = tile[lane][i];
  }
}

template <typename T>
cudaError_t transpose(const T* input, T* output, int64_t batch, int64_t rows, int64_t columns, cudaStream_t stream) {
  const int64_t tiles =
      batch * ((rows + kTransposeTile - 1) / kTransposeTile) * ((columns + kTransposeTile - 1) / kTransposeTile);
  if (tiles == 0) return cudaSuccess;
  if (tiles > INT32_MAX) return cudaErrorInvalidValue;
  return launch_kernel(transpose_kernel<T>, dim3(unsigned(tiles)), dim3(kTransposeTile, kTransposeRows), 0, stream,
                       input, output, rows, columns);
}

}  // namespace upsnet
