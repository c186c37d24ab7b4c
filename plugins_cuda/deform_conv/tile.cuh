// One step of the implicit matrix product in shared memory: 128 pixels x one chunk of channels of one tap (64 bytes a
// pixel) times the same chunk x kOutputs output channels, by 256 threads with the sums in registers.
//
// Half and BFloat16: the matrix units. A row is one pixel (or output channel) with its 32 channels, four units of 16
// bytes, whose order within the row is permuted by the row's number: neither the stores of the gather nor ldmatrix meet
// a bank twice. float: 8 x (kOutputs / 16) sums a thread by fused multiply-adds (TF32 would round the factors).
#pragma once

#include "common/mma.cuh"

namespace upsnet::deform_conv {

constexpr int kThreads = 256;
constexpr int kPixels = 128;
constexpr int kUnits = 4;  // of 16 bytes, in the chunk of one pixel
constexpr int kUnitBytes = 16;
constexpr int kHalves = 2;  // a step is multiplied in two halves, between which the next gather advances

template <typename T, int kOutputs>
struct Tile {
  static constexpr int kLanes = kUnitBytes / sizeof(T);  // elements of a unit
  static constexpr int kChunk = kUnits * kLanes;         // channels of a step
  static constexpr int kPixelBytes = kPixels * kUnits * kUnitBytes;
  static constexpr int kWeightBytes = kOutputs * kUnits * kUnitBytes;
  static constexpr int kWarpsAcross = kOutputs / 32;  // a warp's part is 32 outputs wide
  static constexpr int kRowBlocks = kPixels * kWarpsAcross / (kThreads / 32) / 16;

  float sums[kRowBlocks][4][4] = {};  // blocks of 16 pixels x 8 outputs, each as mma's fragment c

  UPSNET_HD static int place(int row, int unit) { return (row * kUnits + (unit ^ (row >> 1 & 3))) * kUnitBytes; }

  // Where the packed weights of a step hold output channel `output` and channel `channel`.
  UPSNET_HD static int weight_index(int output, int channel) {
    return place(output, channel / kLanes) / int(sizeof(T)) + channel % kLanes;
  }

  __device__ static void store(unsigned char* pixels, int pixel, int unit, const float (&values)[kLanes]) {
    uint4 packed;
    packed.x = pack<T>(values[0], values[1]);
    packed.y = pack<T>(values[2], values[3]);
    packed.z = pack<T>(values[4], values[5]);
    packed.w = pack<T>(values[6], values[7]);
    *reinterpret_cast<uint4*>(pixels + place(pixel, unit)) = packed;
  }

  __device__ static int first_pixel() { return int(threadIdx.x) / 32 / kWarpsAcross * kRowBlocks * 16; }
  __device__ static int first_output() { return int(threadIdx.x) / 32 % kWarpsAcross * 32; }

  __device__ void multiply(const unsigned char* pixels, const unsigned char* weights, int half) {
    const int lane = threadIdx.x % 32, matrix = lane / 8, row = lane % 8;
    uint32_t b[4][2];
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {  // two blocks of 8 outputs x 16 channels at a time
      uint32_t loaded[4];
      const int output = first_output() + pair * 16 + matrix / 2 * 8 + row;
      load_matrices(loaded, weights + place(output, half * 2 + matrix % 2));
      b[2 * pair][0] = loaded[0];
      b[2 * pair][1] = loaded[1];
      b[2 * pair + 1][0] = loaded[2];
      b[2 * pair + 1][1] = loaded[3];
    }
#pragma unroll
    for (int i = 0; i < kRowBlocks; ++i) {
      uint32_t a[4];
      load_matrices(a, pixels + place(first_pixel() + i * 16 + matrix % 2 * 8 + row, half * 2 + matrix / 2));
#pragma unroll
      for (int j = 0; j < 4; ++j) mma_16x8x16<T>(sums[i][j], a, b[j]);
    }
  }

  // consume(pixel, output, sum) for every sum of this thread.
  template <typename Consume>
  __device__ __forceinline__ void for_each(Consume consume, int = 0, int = kOutputs) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < kRowBlocks; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int part = 0; part < 4; ++part) {
          consume(first_pixel() + i * 16 + part / 2 * 8 + lane / 4, first_output() + j * 8 + lane % 4 * 2 + part % 2,
                  sums[i][j][part]);
        }
      }
    }
  }
};

template <int kOutputs>
struct Tile<float, kOutputs> {
  static constexpr int kLanes = 4;
  static constexpr int kChunk = kUnits * kLanes;
  static constexpr int kStride = kPixels + 4;  // pixels lie one row a channel; 2-way conflicts at most in the stores
  static constexpr int kPixelBytes = kChunk * kStride * 4;
  static constexpr int kWeightBytes = kOutputs * kUnits * kUnitBytes;
  static constexpr int kQuads = kOutputs / 64;

  float sums[2][kQuads][4][4] = {};  // quads of pixels x quads of outputs, 64 apart

  UPSNET_HD static int weight_index(int output, int channel) { return channel * kOutputs + output; }

  __device__ static void store(unsigned char* pixels, int pixel, int unit, const float (&values)[kLanes]) {
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      reinterpret_cast<float*>(pixels)[(unit * kLanes + i) * kStride + pixel] = values[i];
    }
  }

  __device__ static int first_pixel() { return int(threadIdx.x) / 16 * 4; }
  __device__ static int first_output() { return int(threadIdx.x) % 16 * 4; }

  __device__ void multiply(const unsigned char* pixels, const unsigned char* weights, int half) {
#pragma unroll 2
    for (int k = 0; k < kChunk / kHalves; ++k) {
      const int channel = half * (kChunk / kHalves) + k;
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
