// The gradient of deformable convolution on a CPU between its two matrix products: one sample.
#pragma once

#include "deform_conv/backward/cpu_plan.h"

namespace upsnet::deform_conv_backward {
namespace {

using deform_conv::Moments;
using deform_conv::Vector;
using deform_conv::vector_at;

// What the pixels of a tile sample at one tap: Point, member by member, and the mask.
template <typename S>
struct Points {
  int32_t pixel[4][kPixels];
  S down[kPixels], right[kPixels], mask[kPixels];

  bool is_off_the_map(int i) const { return (pixel[0][i] & pixel[1][i] & pixel[2][i] & pixel[3][i]) < 0; }
};

// Of one sample: where its corners' channels are, those of their gradients, and what it weighs there.
template <typename S>
struct Corners {
  const S* value[4];
  S* gradient[4];
  S weight[4];
};

typedef float Quad __attribute__((vector_size(16)));
#ifdef __clang__
#define UPSNET_SHUFFLE_QUAD(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int QuadOrder __attribute__((vector_size(16)));
#define UPSNET_SHUFFLE_QUAD(a, b, ...) __builtin_shuffle(a, b, QuadOrder{__VA_ARGS__})
#endif

// a0 + a2, b0 + b2, a1 + a3, b1 + b3
inline Quad paired(Quad a, Quad b) {
  return UPSNET_SHUFFLE_QUAD(a, b, 0, 4, 1, 5) + UPSNET_SHUFFLE_QUAD(a, b, 2, 6, 3, 7);
}

// The sums of four vectors at once, in a quarter of the instructions.
inline void sums_of(const Vector<float> (&lanes)[4], float (&sums)[4]) {
  constexpr int kWidth = RegisterTile<float>::kWidth;
  Quad quads[4] = {};
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    float all[kWidth];
    std::memcpy(all, &lanes[i], sizeof all);
#pragma GCC unroll 4
    for (int first = 0; first < kWidth; first += 4) {
      Quad quad;
      std::memcpy(&quad, all + first, sizeof quad);
      quads[i] += quad;
    }
  }
  const Quad first = paired(quads[0], quads[1]), second = paired(quads[2], quads[3]);  // top, bottom; left, corner
  const Quad all = UPSNET_SHUFFLE_QUAD(first, second, 0, 1, 4, 5) + UPSNET_SHUFFLE_QUAD(first, second, 2, 3, 6, 7);
  std::memcpy(sums, &all, sizeof all);
}

inline void sums_of(const Vector<double> (&lanes)[4], double (&sums)[4]) {
  for (int i = 0; i < 4; ++i) {
    sums[i] = 0;
    for (int lane = 0; lane < RegisterTile<double>::kWidth; ++lane) sums[i] += lanes[i][lane];
  }
}

// Reads `count` channels of the corners and of the sample's gradient; writes the sample to `column`, and adds to the
// corners' gradients. `gradient` and `column` lie in panels, kPixels x kColumns numbers apart.
template <typename S>
Moments<S> visit(const Corners<S>& corners, const S* gradient, S* column, int count) {
  constexpr int kWidth = RegisterTile<S>::kWidth, kColumns = RegisterTile<S>::kColumns;
  constexpr int64_t kPanel = int64_t(kPixels) * kColumns;
  const auto [v0, v1, v2, v3] = corners.value;
  const auto [g0, g1, g2, g3] = corners.gradient;
  const auto [w0, w1, w2, w3] = corners.weight;
  const auto add = [](S* place, Vector<S> value) { vector_at(place) += value; };
  Vector<S> lanes[4] = {};
  int c = 0;
  for (; c + kWidth <= count; c += kWidth) {
    const int64_t at = c / kColumns * kPanel + c % kColumns;
    const Vector<S> own = vector_at(gradient + at);
    const Vector<S> a = vector_at(v0 + c), b = vector_at(v1 + c), d = vector_at(v2 + c), e = vector_at(v3 + c);
    lanes[0] += own * (b - a);
    lanes[1] += own * (e - d);
    lanes[2] += own * (d - a);
    lanes[3] += own * a;
    vector_at(column + at) = w0 * a + w1 * b + w2 * d + w3 * e;
    add(g0 + c, w0 * own), add(g1 + c, w1 * own), add(g2 + c, w2 * own), add(g3 + c, w3 * own);
  }
  S sums[4];
  sums_of(lanes, sums);
  for (; c < count; ++c) {
    const int64_t at = c / kColumns * kPanel + c % kColumns;
    const S own = gradient[at], a = v0[c], b = v1[c], d = v2[c], e = v3[c];
    sums[0] += own * (b - a);
    sums[1] += own * (e - d);
    sums[2] += own * (d - a);
    sums[3] += own * a;
    column[at] = w0 * a + w1 * b + w2 * d + w3 * e;
    g0[c] += w0 * own, g1[c] += w1 * own, g2[c] += w2 * own, g3[c] += w3 * own;
  }
  return {sums[0], sums[1], sums[2], sums[3]};
}

}  // namespace
}  // namespace upsnet::deform_conv_backward
