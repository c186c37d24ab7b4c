// Decoding an anchor. Compiled without FMA contraction, so that it rounds as the definition does.
#pragma once

#include <cmath>

#include "best_anchors/launch.h"
#include "common/numeric.h"

namespace upsnet::best_anchors {

constexpr int kFinestStride = 4;
constexpr float kMaxLogRatio = 4.135166556742356f;  // log(1000 / 16)
constexpr int64_t kMost = 1 << 30;                  // anchors of a level, and top_n

// Why no front can run it, null where all can; the bindings explain what they refuse.
inline const char* unsupported(const Params& p) {
  if (p.batch < 0 || p.anchors < 0) return "a negative size";
  if (p.channels != 5 * int64_t{p.anchors}) return "maps without five channels for each anchor";
  if (p.top_n < 1 || p.top_n > kMost) return "a top_n outside 1..2^30";
  for (int level = 0; level < kLevels; ++level) {
    if (p.heights[level] < 0 || p.widths[level] < 0) return "a negative size";
    const int64_t cells = int64_t{p.heights[level]} * p.widths[level];
    if (cells > kMost || cells * p.anchors > kMost) return "more than 2^30 anchors in one of P2..P6";
  }
  return nullptr;
}
inline bool is_supported(const Params& p) { return unsupported(p) == nullptr; }

// One direction of a box: an anchor from `near` to `far`, its two deltas, and the image's last place. NaN stays NaN.
UPSNET_HD void decode(float near, float far, float shift, float growth, float limit, float pixel, float* low,
                      float* high) {
  const float side = far - near + pixel;
  const float centre = near + side / 2.0f + shift * side;
  const float half = side * expf(kMaxLogRatio < growth ? kMaxLogRatio : growth) / 2.0f;
  const auto clipped = [limit](float place) {
    const float positive = place < 0.0f ? 0.0f : place;
    return limit < positive ? limit : positive;
  };
  *low = clipped(centre - half);
  *high = clipped(centre + half - pixel);
}

}  // namespace upsnet::best_anchors
