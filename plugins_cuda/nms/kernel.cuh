// The arithmetic of NMS: the order of candidates and the overlap of two boxes. Compiled without FMA contraction on
// every front, so that each decision is the same bit for bit, and the one that torchvision's CPU nms takes.
#pragma once

#include "common/numeric.h"
#include "nms/launch.h"

namespace upsnet::nms {

constexpr int kMost = 1 << 30;  // boxes of a row, and outputs: an index may go one step of all threads beyond it

// Why no front can run it, null where all can; the bindings explain what they refuse. Scores, and with them their
// threshold, may be negative. An IoU below 0 does not exist: a threshold there would be passed by boxes that are apart.
inline const char* unsupported(const Params& p) {
  if (p.batch < 0 || p.num_boxes < 0 || p.max_output < 0) return "a negative size";
  if (p.num_boxes > kMost || p.max_output > kMost) return "more than 2^30 boxes or max_output";
  if (!(p.iou_threshold >= 0.0f && p.iou_threshold <= 1.0f)) return "an iou_threshold outside 0..1";
  return p.score_threshold == p.score_threshold ? nullptr : "a score_threshold that is NaN";
}
inline bool is_supported(const Params& p) { return unsupported(p) == nullptr; }

struct alignas(16) Box {
  float x1, y1, x2, y2;
};

// `pixel` is 1 in the legacy convention, where x2 and y2 lie inside the box, else 0.
UPSNET_HD float area(const Box& box, float pixel) { return (box.x2 - box.x1 + pixel) * (box.y2 - box.y1 + pixel); }

UPSNET_HD float larger(float a, float b) { return a < b ? b : a; }
UPSNET_HD float smaller(float a, float b) { return b < a ? b : a; }

// IoU > threshold. A box with a coordinate that is NaN or infinite, or whose area is infinite, overlaps nothing: its
// IoU is NaN or 0 (threshold >= 0). So does a box without area: 0 / 0 is NaN.
UPSNET_HD bool suppresses(const Box& kept, float kept_area, const Box& other, float other_area, float pixel,
                          float threshold) {
  const float width = larger(0.0f, smaller(kept.x2, other.x2) - larger(kept.x1, other.x1) + pixel);
  const float height = larger(0.0f, smaller(kept.y2, other.y2) - larger(kept.y1, other.y1) + pixel);
  const float shared = width * height;
  return shared / (kept_area + other_area - shared) > threshold;
}

UPSNET_HD uint32_t bits_of(float value) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

// True only where suppresses() is false: where one box ends before the other begins, a difference is negative, and the
// intersection's width or height comes out as <= 0, because rounding keeps the order (a > b + 1 rounded leaves b - a
// rounded at -1 at most). A NaN may have either sign, but then a box is one that overlaps nothing. Signs are joined
// because comparisons of floats, and selecting by them, run at half the rate of sums.
UPSNET_HD bool apart(const Box& a, const Box& b, float pixel) {
  const uint32_t across = bits_of(b.x2 + pixel - a.x1) | bits_of(a.x2 + pixel - b.x1);
  const uint32_t along = bits_of(b.y2 + pixel - a.y1) | bits_of(a.y2 + pixel - b.y1);
  return (across | along) >> 31 != 0;
}

// Candidates as one 64-bit number each, all different, the best one the highest: score above, then the lower index.
// 0 is no candidate. Scores compare like numbers: -0 and +0 are equal, NaN is over no threshold.
UPSNET_HD uint32_t order_of(float score) {
  const uint32_t bits = bits_of(score + 0.0f);  // -0 becomes +0
  return bits ^ (uint32_t(int32_t(bits) >> 31) | 0x80000000u);
}

UPSNET_HD uint64_t key_of(float score, float threshold, uint32_t index) {
  return score > threshold ? uint64_t{order_of(score)} << 32 | uint32_t(~index) : 0;
}

UPSNET_HD uint32_t index_of(uint64_t key) { return ~uint32_t(key); }

}  // namespace upsnet::nms
