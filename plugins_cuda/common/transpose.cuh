// [batch, rows, columns] -> [batch, columns, rows] of up to four maps in one launch. Brings NCHW maps (rows = C,
// columns = H * W) to NHWC.
//
// A block takes 128 bytes of columns of one image, and of these 128 rows after the other: each thread reads four pieces
// of 16 bytes, all at once, writes them to shared memory, picks eight rows of one or two columns from there, and writes
// those as pieces of 16 bytes again. Global memory sees whole lines of 128 bytes on both sides. In shared memory the
// pieces of a row change places by the row's number, so that neither side meets a bank twice. Where a side does not lie
// on 16 bytes (an odd number of columns, say), it goes by single elements.
//
// Floor: every byte in and out once. A block has 16 KB on their way, a multiprocessor of an H200 96 KB: three times
// what 4.8 TB/s and a latency of 0.8 us want.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/cuda.h"

namespace upsnet {

constexpr int kTransposedMaps = 4;

struct Transposition {
  const void* input[kTransposedMaps];
  void* output[kTransposedMaps];
  int64_t columns[kTransposedMaps];  // 0: no such map
  int64_t batch;
  int rows;
  int pitch;  // of the output, in elements: `rows`, or more, of which the last are zeros
};

// The usual answer to which columns of which map and image somebody will read. Others' may wait for all threads.
struct WantAll {
  __device__ bool operator()(int, int64_t, int64_t, int64_t) const { return true; }
};

template <typename T>
class TransposedTile {
 public:
  static constexpr int kThreads = 256;
  static constexpr int kColumns = 128 / sizeof(T), kHalf = 64, kRows = 2 * kHalf;
  static constexpr int kPiece = 16 / sizeof(T);  // elements
  static_assert(sizeof(T) == 2 || sizeof(T) == 4, "words of one or two elements");

  // rows, columns: how many of them there are from source on.
  __device__ static void read(uint4* tile, const T* source, int64_t pitch, int rows, int columns) {
    if (pitch % kPiece == 0 && reinterpret_cast<uintptr_t>(source) % 16 == 0) {
      uint4 pieces[kRows * 8 / kThreads];
#pragma unroll
      for (int i = 0; i < kRows * 8 / kThreads; ++i) {
        const int row = row_of(i), column = threadIdx.x % 8 * kPiece;
        pieces[i] = make_uint4(0, 0, 0, 0);
        if (row < rows && column < columns) {
          pieces[i] = __ldg(reinterpret_cast<const uint4*>(source + row * pitch + column));
        }
      }
#pragma unroll
      for (int i = 0; i < kRows * 8 / kThreads; ++i) tile[place(row_of(i), threadIdx.x % 8)] = pieces[i];
      return;
    }
    T* elements = reinterpret_cast<T*>(tile);
    const int column = threadIdx.x % kColumns;
#pragma unroll 4
    for (int row = threadIdx.x / kColumns; row < kRows; row += kThreads / kColumns) {
      elements[element(row, column)] = row < rows && column < columns ? source[row * pitch + column] : T{};
    }
  }

  // rows: of the output's pitch, from target on.
  __device__ static void write(const uint4* tile, T* target, int64_t pitch, int rows, int columns) {
    if (pitch % kPiece != 0 || reinterpret_cast<uintptr_t>(target) % 16 != 0) {
      const T* elements = reinterpret_cast<const T*>(tile);
      const int row = threadIdx.x % kRows;
#pragma unroll 4
      for (int column = threadIdx.x / kRows; column < columns; column += kThreads / kRows) {
        if (row < rows) target[column * pitch + row] = elements[element(row, column)];
      }
      return;
    }
    constexpr int kInWord = 4 / sizeof(T);  // columns
    const uint32_t* words = reinterpret_cast<const uint32_t*>(tile);
    const int word = threadIdx.x / 8, column = word * kInWord, first = threadIdx.x % 8 * 8;
    const int begin = 4 * place(first, word / 4) + word % 4;
    T* pixel = target + column * pitch + first;
    if (column >= columns) return;
#pragma unroll
    for (int half = 0; half < kRows; half += kHalf, pixel += kHalf) {
      if (first + half >= rows) return;
      uint32_t w[8];  // place(row + k, piece) for k < 8, and place(row + 64, piece), from place(row, piece)
#pragma unroll
      for (int k = 0; k < 8; ++k) w[k] = words[(begin ^ 4 * k) + 32 * (half + k)];
      uint4 one, other;
      if constexpr (sizeof(T) == 2) {
        one = make_uint4(low(w[0], w[1]), low(w[2], w[3]), low(w[4], w[5]), low(w[6], w[7]));
        other = make_uint4(high(w[0], w[1]), high(w[2], w[3]), high(w[4], w[5]), high(w[6], w[7]));
      } else {
        one = make_uint4(w[0], w[1], w[2], w[3]);
        other = make_uint4(w[4], w[5], w[6], w[7]);
      }
      *reinterpret_cast<uint4*>(pixel) = one;
      if constexpr (sizeof(T) == 2) {
        if (column + 1 < columns) *reinterpret_cast<uint4*>(pixel + pitch) = other;
      } else {
        if (first + half + 4 < rows) *reinterpret_cast<uint4*>(pixel + 4) = other;
      }
    }
  }

 private:
  __device__ static int row_of(int piece) { return threadIdx.x / 8 + piece * (kThreads / 8); }

  // Where the tile has a piece. Of one row, and of rows 8 apart, eight pieces lie in different banks.
  __device__ static int place(int row, int piece) { return row * 8 + (piece ^ (row & 7) ^ (row / 8 & 7)); }
  __device__ static int element(int row, int column) { return place(row, column / kPiece) * kPiece + column % kPiece; }

  // The lower and the upper halves of two words.
  __device__ static uint32_t low(uint32_t a, uint32_t b) { return (a & 0xffffu) | b << 16; }
  __device__ static uint32_t high(uint32_t a, uint32_t b) { return a >> 16 | (b & 0xffff0000u); }
};

#ifdef UPSNET_BEFORE_SM_80
constexpr int kTransposingBlocks = 4;  // all threads that a multiprocessor has
#else
constexpr int kTransposingBlocks = 6;
#endif

// Grid: tiles of all maps x parts of the rows x images. wanted(map, image, first column, how many) is asked once for
// each image, by all threads.
template <typename T, typename Wanted>
__global__ void __launch_bounds__(TransposedTile<T>::kThreads, kTransposingBlocks)
    transpose_kernel(Transposition maps, Wanted wanted) {
  using Tile = TransposedTile<T>;
  __shared__ uint4 tile[Tile::kRows * 8];
  int map = 0;
  int64_t first_column = int64_t{blockIdx.x} * Tile::kColumns, columns = maps.columns[0];
  const T* input = static_cast<const T*>(maps.input[0]);
  T* output = static_cast<T*>(maps.output[0]);
#pragma unroll
  for (int next = 1; next < kTransposedMaps; ++next) {
    if (map < next - 1 || first_column < columns) continue;
    first_column -= (columns + Tile::kColumns - 1) / Tile::kColumns * Tile::kColumns;
    map = next;
    columns = maps.columns[next];
    input = static_cast<const T*>(maps.input[next]);
    output = static_cast<T*>(maps.output[next]);
  }
  const int here = columns - first_column < Tile::kColumns ? int(columns - first_column) : Tile::kColumns;
  for (int64_t image = blockIdx.z; image < maps.batch; image += gridDim.z) {
    if (!wanted(map, image, first_column, here)) continue;
    const T* source = input + image * maps.rows * columns + first_column;
    T* target = output + (image * columns + first_column) * maps.pitch;
    for (int64_t row = blockIdx.y * Tile::kRows; row < maps.pitch; row += gridDim.y * Tile::kRows) {
      Tile::read(tile, source + row * columns, columns, int(maps.rows - row), here);
      __syncthreads();
      Tile::write(tile, target + row, maps.pitch, int(maps.pitch - row), here);
      __syncthreads();
    }
  }
}

// T: any type of two or four bytes.
template <typename T, typename Wanted = WantAll>
cudaError_t transpose(const Transposition& maps, cudaStream_t stream, Wanted wanted = {}) {
  using Bits = std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t>;
  using Tile = TransposedTile<Bits>;
  constexpr int64_t kBlocksWanted = 792;  // as many as an H200 holds at once; with fewer, rows are divided among blocks
  int64_t tiles = 0;
  for (const int64_t columns : maps.columns) tiles += (columns + Tile::kColumns - 1) / Tile::kColumns;
  if (tiles == 0 || maps.batch == 0 || maps.pitch == 0) return cudaSuccess;
  if (tiles > INT32_MAX) return cudaErrorInvalidValue;
  const int64_t images = maps.batch < kMaxGrid ? maps.batch : kMaxGrid, parts = (maps.pitch - 1) / Tile::kRows + 1;
  const bool enough = tiles * images >= kBlocksWanted;
  const dim3 grid(unsigned(tiles), enough ? 1 : unsigned(parts < kMaxGrid ? parts : kMaxGrid), unsigned(images));
  return launch_kernel(transpose_kernel<Bits, Wanted>, grid, dim3(Tile::kThreads), 0, stream, maps, wanted);
}

template <typename T>
cudaError_t transpose(const T* input, T* output, int64_t batch, int64_t rows, int64_t columns, cudaStream_t stream) {
  return transpose<T>({{input}, {output}, {columns}, batch, int(rows), int(rows)}, stream);
}

}  // namespace upsnet
