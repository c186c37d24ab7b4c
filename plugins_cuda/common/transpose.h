// Matrices transposed in vector registers, for the CPU fronts: NCHW to NHWC and back, with half types widened to float
// on the way in and rounded on the way out.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef __F16C__
#include <immintrin.h>
#endif

#include "common/numeric.h"

namespace upsnet {

// GCC's and Clang's portable vectors: AVX where there is AVX, two or eight registers elsewhere.
constexpr int kOctet = 8;
typedef float Octet __attribute__((vector_size(kOctet * sizeof(float))));

inline Octet load_octet(const float* source) {
  Octet octet;
  std::memcpy(&octet, source, sizeof octet);
  return octet;
}

inline void store_octet(float* target, Octet octet) { std::memcpy(target, &octet, sizeof octet); }

#ifdef __clang__
#define UPSNET_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int OctetOrder __attribute__((vector_size(kOctet * sizeof(int))));
#define UPSNET_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, ::upsnet::OctetOrder{__VA_ARGS__})
#endif

// rows[i][j] <-> rows[j][i]: pairs, then quadruples inside each half, then the halves.
inline void transpose(Octet (&rows)[kOctet]) {
  Octet pairs[kOctet], quads[kOctet];
  for (int i = 0; i < kOctet; i += 2) {
    pairs[i] = UPSNET_SHUFFLE(rows[i], rows[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    pairs[i + 1] = UPSNET_SHUFFLE(rows[i], rows[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < kOctet; i += 4) {
    for (int j = 0; j < 2; ++j) {
      quads[i + 2 * j] = UPSNET_SHUFFLE(pairs[i + j], pairs[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      quads[i + 2 * j + 1] = UPSNET_SHUFFLE(pairs[i + j], pairs[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  }
  for (int i = 0; i < kOctet / 2; ++i) {
    rows[i] = UPSNET_SHUFFLE(quads[i], quads[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    rows[i + 4] = UPSNET_SHUFFLE(quads[i], quads[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

inline void widen(const float* source, float* target, int64_t count) {
  std::memcpy(target, source, count * sizeof(float));
}

template <typename T>
void widen(const T* source, float* target, int64_t count) {
  int64_t i = 0;
#ifdef __F16C__  // GCC turns to_float(Half) into scalar code
  if constexpr (std::is_same_v<T, Half>) {
    for (; i + kOctet <= count; i += kOctet) {
      __m128i halves;
      std::memcpy(&halves, source + i, sizeof halves);
      _mm256_storeu_ps(target + i, _mm256_cvtph_ps(halves));
    }
  }
#endif
  for (; i < count; ++i) target[i] = to_float(source[i]);
}

inline void narrow(const float* source, float* target, int64_t count) { widen(source, target, count); }

template <typename T>
void narrow(const float* source, T* target, int64_t count) {
  int64_t i = 0;
#ifdef __F16C__
  if constexpr (std::is_same_v<T, Half>) {
    for (; i + kOctet <= count; i += kOctet) {
      const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(source + i), _MM_FROUND_TO_NEAREST_INT);
      std::memcpy(target + i, &halves, sizeof halves);
    }
  }
#endif
  for (; i < count; ++i) target[i] = from_float<T>(source[i]);
}

// target[j * target_pitch + i] = source[i * source_pitch + j], i < rows, j < columns.
inline void transpose_block(const float* source, int64_t source_pitch, float* target, int64_t target_pitch, int rows,
                            int columns) {
  int i = 0;
  for (; i + kOctet <= rows; i += kOctet) {
    int j = 0;
    for (; j + kOctet <= columns; j += kOctet) {
      Octet block[kOctet];
      for (int k = 0; k < kOctet; ++k) block[k] = load_octet(source + (i + k) * source_pitch + j);
      transpose(block);
      for (int k = 0; k < kOctet; ++k) store_octet(target + (j + k) * target_pitch + i, block[k]);
    }
    for (; j < columns; ++j) {
      for (int k = i; k < i + kOctet; ++k) target[j * target_pitch + k] = source[k * source_pitch + j];
    }
  }
  for (; i < rows; ++i) {
    for (int j = 0; j < columns; ++j) target[j * target_pitch + i] = source[i * source_pitch + j];
  }
}

// The same in blocks of 16 x 16, whole cache lines on both sides, from T or to T.
template <typename Source, typename Target>
void transpose(const Source* source, int64_t source_pitch, Target* target, int64_t target_pitch, int64_t rows,
               int64_t columns) {
  constexpr int kBlock = 16;
  for (int64_t i = 0; i < rows; i += kBlock) {
    const int height = int(std::min<int64_t>(kBlock, rows - i));
    for (int64_t j = 0; j < columns; j += kBlock) {
      const int width = int(std::min<int64_t>(kBlock, columns - j));
      const Source* const from = source + i * source_pitch + j;
      Target* const to = target + j * target_pitch + i;
      if constexpr (std::is_same_v<Source, float> && std::is_same_v<Target, float>) {
        transpose_block(from, source_pitch, to, target_pitch, height, width);
      } else {
        float wide[kBlock * kBlock], turned[kBlock * kBlock];
        for (int k = 0; k < height; ++k) widen(from + k * source_pitch, wide + k * kBlock, width);
        transpose_block(wide, kBlock, turned, kBlock, height, width);
        for (int k = 0; k < width; ++k) narrow(turned + k * kBlock, to + k * target_pitch, height);
      }
    }
  }
}

// Of doubles, for who checks gradients: it need not be fast.
inline void transpose(const double* source, int64_t source_pitch, double* target, int64_t target_pitch, int64_t rows,
                      int64_t columns) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) target[j * target_pitch + i] = source[i * source_pitch + j];
  }
}

}  // namespace upsnet
