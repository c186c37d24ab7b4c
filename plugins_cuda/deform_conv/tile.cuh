// The products of a block: 128 pixels x kOutputs output channels, summed over steps of one chunk of channels of one tap
// (64 bytes a pixel), with the sums in registers.
//
// Half and BFloat16: the matrix units, warps of 32 pixels x 64 or 128 outputs. A lane is 4 * g + t, as in mma.cuh.
// Which channel stands at which k of mma is free as long as pixels and weights agree, so a lane's 16 bytes, channels 8
// t to 8 t + 7, are its k 2t, 2t+1, 2t+8 and 2t+9 of two products: what a lane gathers and blends of pixel g is its own
// fragment a, and 16 bytes of row g of the weights are its fragment b. Pixels pass through shared memory only where two
// warps have the same, each for 128 outputs: then either blends half of them.
//
// float: 256 threads, 8 x (kOutputs / 16) sums each, fused multiply-adds (TF32 would round the factors) of pixels and
// weights in shared memory.
#pragma once

#include "common/mma.cuh"

namespace upsnet::deform_conv {

constexpr int kPixels = 128;
constexpr int kUnits = 4;  // of 16 bytes, in the chunk of one pixel
constexpr int kUnitBytes = 16;

template <typename T, int kOutputs>
struct Tile {
  static constexpr int kTogether = kOutputs > 128 ? 2 : 1;  // warps that have the same pixels
  static constexpr int kThreads = 128 * kTogether;
  static constexpr int kLanes = kUnitBytes / sizeof(T);                                  // elements of a unit
  static constexpr int kChunk = kUnits * kLanes;                                         // channels of a step
  static constexpr int kPixelBytes = kTogether > 1 ? kPixels * kUnits * kUnitBytes : 0;  // of a step, in shared memory
  static constexpr int kWeightBytes = kOutputs * kUnits * kUnitBytes;
  static constexpr int kRowBlocks = 2, kColumnBlocks = kOutputs / kTogether / 8;  // of a warp
  static constexpr int kItems = 2 * kRowBlocks;    // pixels of a lane, and parts in which a step is multiplied
  static constexpr int kOwn = kItems / kTogether;  // that it blends
  static_assert(kPixels == 128 && kItems * 8 == 32, "four times the pixels of a warp, a lane for each");

  // Of one step, fragments a of [block of 16 pixels][product of 16 channels].
  struct Fragments {
    uint32_t a[kRowBlocks][2][4];
  };

  float sums[kRowBlocks][kColumnBlocks][4] = {};  // each as mma's fragment c

  // One unit of an output channel in the packed weights of a step.
  __device__ static void store_weights(T* piece, int output, int unit, const T (&values)[kLanes]) {
    uint4 packed;
    memcpy(&packed, values, sizeof packed);
    reinterpret_cast<uint4*>(piece)[output * kUnits + unit] = packed;
  }

  __device__ static int lane() { return int(threadIdx.x) % 32; }
  __device__ static int first_pixel() { return int(threadIdx.x) / 32 % 4 * (kRowBlocks * 16); }
  __device__ static int first_output() { return kTogether > 1 ? int(threadIdx.x) / 128 * 128 : 0; }
  __device__ static int first_own() { return kTogether > 1 ? int(threadIdx.x) / 128 * kOwn : 0; }
  __device__ static int pixel_of(int own) { return first_pixel() + (first_own() + own) * 8 + lane() / 4; }
  __device__ static int unit() { return lane() % 4; }

  // The blended channels of a lane's item become its part of the fragments.
  __device__ static void set(Fragments& fragments, int item, const float (&values)[kLanes]) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      uint32_t (&a)[4] = fragments.a[item / 2][k];
      a[item % 2] = pack<T>(values[4 * k], values[4 * k + 1]);
      a[item % 2 + 2] = pack<T>(values[4 * k + 2], values[4 * k + 3]);
    }
  }

  // Warps that have the same pixels hand each other the block of them that they blend, through shared memory.
  __device__ static void hand_over(const Fragments& fragments, unsigned char* pixels) {
    static_assert(kOwn == 2 || kTogether == 1, "one block");
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const uint32_t (&a)[4] = fragments.a[0][k];
      handed(pixels)[(first_own() + k) * 32] = make_uint4(a[0], a[1], a[2], a[3]);
    }
  }
  __device__ static Fragments take_over(unsigned char* pixels) {
    Fragments fragments;
#pragma unroll
    for (int i = 0; i < 2 * kRowBlocks; ++i) {
      const uint4 part = handed(pixels)[i * 32];
      uint32_t (&a)[4] = fragments.a[i / 2][i % 2];
      a[0] = part.x, a[1] = part.y, a[2] = part.z, a[3] = part.w;
    }
    return fragments;
  }
  __device__ static uint4* handed(unsigned char* pixels) {
    return reinterpret_cast<uint4*>(pixels) + int(threadIdx.x) / 32 % 4 * (2 * kRowBlocks * 32) + lane();
  }

  // Part `part` of kItems of a step: that share of the outputs.
  __device__ void multiply(const Fragments& fragments, const unsigned char* weights, int part) {
    constexpr int kShare = kColumnBlocks / kItems;
    static_assert(kColumnBlocks % kItems == 0);
    uint4 b[kShare];
#pragma unroll
    for (int j = 0; j < kShare; ++j) {
      b[j] = reinterpret_cast<const uint4*>(weights)[(first_output() / 8 + part * kShare + j) * 32 + lane()];
    }
#pragma unroll
    for (int k = 0; k < 2; ++k) {
#pragma unroll
      for (int j = 0; j < kShare; ++j) {
        const uint32_t column[2] = {k == 0 ? b[j].x : b[j].z, k == 0 ? b[j].y : b[j].w};
#pragma unroll
        for (int i = 0; i < kRowBlocks; ++i) { mma_16x8x16<T>(sums[i][part * kShare + j], fragments.a[i][k], column); }
      }
    }
  }

  // consume(pixel, output, sum) for every sum of this thread whose output is one from `begin` up to `end`.
  template <typename Consume>
  __device__ __forceinline__ void for_each(Consume consume, int begin = 0, int end = kOutputs) const {
    if (first_output() < begin || first_output() >= end) return;
#pragma unroll
    for (int j = 0; j < kColumnBlocks; ++j) {
#pragma unroll
      for (int i = 0; i < kRowBlocks; ++i) {
#pragma unroll
        for (int part = 0; part < 4; ++part) {
          consume(first_pixel() + i * 16 + part / 2 * 8 + lane() / 4,
                  first_output() + j * 8 + lane() % 4 * 2 + part % 2, sums[i][j][part]);
        }
      }
    }
  }
};

template <int kOutputs>
struct Tile<float, kOutputs> {
  static constexpr int kThreads = 256;
  static constexpr int kLanes = 4;
  static constexpr int kChunk = kUnits * kLanes;
  static constexpr int kStride = kPixels + 4;  // pixels lie one row a channel; 2-way conflicts at most in the stores
  static constexpr int kPixelBytes = kChunk * kStride * 4;
  static constexpr int kWeightBytes = kOutputs * kUnits * kUnitBytes;
  static constexpr int kItems = kPixels * kUnits / kThreads;  // units of a thread, and parts of a step
  static constexpr int kQuads = kOutputs / 64;

  float sums[2][kQuads][4][4] = {};  // quads of pixels x quads of outputs, 64 apart

  __device__ static void store_weights(float* piece, int output, int unit, const float (&values)[kLanes]) {
#pragma unroll
    for (int i = 0; i < kLanes; ++i) piece[(unit * kLanes + i) * kOutputs + output] = values[i];
  }

  __device__ static int pixel_of(int item) { return item * (kThreads / kUnits) + int(threadIdx.x) / kUnits; }
  __device__ static int unit() { return int(threadIdx.x) % kUnits; }

  __device__ static void store(unsigned char* pixels, int item, const float (&values)[kLanes]) {
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      reinterpret_cast<float*>(pixels)[(unit() * kLanes + i) * kStride + pixel_of(item)] = values[i];
    }
  }

  __device__ static int first_pixel() { return int(threadIdx.x) / 16 * 4; }
  __device__ static int first_output() { return int(threadIdx.x) % 16 * 4; }

  __device__ void multiply(const unsigned char* pixels, const unsigned char* weights, int part) {
#pragma unroll 2
    for (int k = 0; k < kChunk / kItems; ++k) {
      const int channel = part * (kChunk / kItems) + k;
      float4 a[2], b[kQuads];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        a[i] = reinterpret_cast<const float4*>(pixels)[(channel * kStride + i * 64 + first_pixel()) / 4];
      }
#pragma unroll
      for (int j = 0; j < kQuads; ++j) {
        b[j] = reinterpret_cast<const float4*>(weights)[(channel * kOutputs + j * 64 + first_output()) / 4];
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float row[4] = {a[i].x, a[i].y, a[i].z, a[i].w};
#pragma unroll
        for (int j = 0; j < kQuads; ++j) {
#pragma unroll
          for (int m = 0; m < 4; ++m) {
            sums[i][j][m][0] += row[m] * b[j].x;
            sums[i][j][m][1] += row[m] * b[j].y;
            sums[i][j][m][2] += row[m] * b[j].z;
            sums[i][j][m][3] += row[m] * b[j].w;
          }
        }
      }
    }
  }

  // Of the outputs from `begin`, a multiple of 64, up to `end`: constants, so that no instruction chooses.
  template <typename Consume>
  __device__ __forceinline__ void for_each(Consume consume, int begin = 0, int end = kOutputs) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < kQuads; ++j) {
        if (j * 64 < begin || j * 64 >= end) continue;
#pragma unroll
        for (int m = 0; m < 4; ++m) {
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            consume(i * 64 + first_pixel() + m, j * 64 + first_output() + n, sums[i][j][m][n]);
          }
        }
      }
    }
  }
};

}  // namespace upsnet::deform_conv
