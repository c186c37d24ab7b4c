// The register-tiled matrix product of deformable convolution and of its gradient on a CPU.
#pragma once

#include <cstdint>

namespace upsnet::deform_conv {
namespace {

// kRows rows x two vectors of columns: 24 sums of 32 registers, or 12 of 16.
#ifdef __AVX512F__
constexpr int kVectorBytes = 64, kRows = 12;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32, kRows = 6;
#else
constexpr int kVectorBytes = 16, kRows = 6;
#endif

template <typename S>  // float, or double
struct RegisterTile;
template <>
struct RegisterTile<float> {
  static constexpr int kWidth = kVectorBytes / sizeof(float), kColumns = 2 * kWidth;
  typedef float Vector __attribute__((vector_size(kVectorBytes), aligned(sizeof(float)), may_alias));
};
template <>
struct RegisterTile<double> {
  static constexpr int kWidth = kVectorBytes / sizeof(double), kColumns = 2 * kWidth;
  typedef double Vector __attribute__((vector_size(kVectorBytes), aligned(sizeof(double)), may_alias));
};
template <typename S>
using Vector = typename RegisterTile<S>::Vector;

template <typename S>
Vector<S>& vector_at(S* place) {
  return *reinterpret_cast<Vector<S>*>(place);
}
template <typename S>
const Vector<S>& vector_at(const S* place) {
  return *reinterpret_cast<const Vector<S>*>(place);
}

enum class Order { kByRow, kByDepth };  // which of the left factor's numbers lie side by side

// sums [kRows][kColumns] += rows [kRows][depth] x panel [depth][kColumns]; by depth: the rows lie as [depth][kRows].
// Every sum adds its products one after the other. kAdd false: =, and what was in sums does not matter.
template <Order kOrder = Order::kByRow, bool kAdd = true, typename S>
void multiply(const S* rows, int64_t stride, const S* panel, int depth, S* sums, int64_t sum_stride) {
  constexpr int kWidth = RegisterTile<S>::kWidth, kColumns = RegisterTile<S>::kColumns;
  Vector<S> sum[kRows][2];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    sum[r][0] = kAdd ? vector_at(sums + r * sum_stride) : Vector<S>{};
    sum[r][1] = kAdd ? vector_at(sums + r * sum_stride + kWidth) : Vector<S>{};
  }
  for (int k = 0; k < depth; ++k) {
    const Vector<S> first = vector_at(panel + k * kColumns), second = vector_at(panel + k * kColumns + kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const S value = kOrder == Order::kByRow ? rows[r * stride + k] : rows[k * stride + r];
      sum[r][0] += value * first;
      sum[r][1] += value * second;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    vector_at(sums + r * sum_stride) = sum[r][0];
    vector_at(sums + r * sum_stride + kWidth) = sum[r][1];
  }
}

inline int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace
}  // namespace upsnet::deform_conv
