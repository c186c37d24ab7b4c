// The best anchors on CPU cores, one level of an image a core.
#include <algorithm>
#include <limits>
#include <new>
#include <vector>

#include "best_anchors/kernel.cuh"
#include "common/exports.h"
#include "common/pool.h"
#include "nms/candidates.h"

namespace upsnet::best_anchors {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();

void run_level(const Params& p, int image, int level) {
  const int height = p.heights[level], width = p.widths[level], anchors = p.anchors;
  const int64_t cells = int64_t{height} * width;
  const float* const map = p.maps[level] + image * cells * p.channels;
  std::vector<float> logits(cells * anchors);  // in the order (y, x, anchor)
  for (int anchor = 0; anchor < anchors; ++anchor) {
    for (int64_t cell = 0; cell < cells; ++cell) logits[cell * anchors + anchor] = map[anchor * cells + cell];
  }
  nms::Candidates candidates(logits.data(), int(logits.size()), kNone);
  const nms::Candidates::Batch best = candidates.next(p.top_n);

  const int64_t row = (int64_t{image} * kLevels + level) * p.top_n;
  float *box = p.boxes + row * 4, *score = p.scores + row;
  const float pixel = p.inclusive ? 1.0f : 0.0f, stride = float(kFinestStride << level);
  const float bottom = float(p.sizes[2 * image]) - pixel, right = float(p.sizes[2 * image + 1]) - pixel;
  for (const uint64_t* key = best.first; key != best.last; ++key, box += 4, ++score) {
    const uint32_t index = nms::index_of(*key);
    const int64_t anchor = index % anchors, cell = index / anchors;
    const float x = float(cell % width) * stride, y = float(cell / width) * stride;
    const float* const base = p.base_anchors + (int64_t{level} * anchors + anchor) * 4;
    const float* const delta = map + (anchors + 4 * anchor) * cells + cell;  // of x, y, width, height, a plane apart
    decode(x + base[0], x + base[2], delta[0], delta[2 * cells], right, pixel, box, box + 2);
    decode(y + base[1], y + base[3], delta[cells], delta[3 * cells], bottom, pixel, box + 1, box + 3);
    *score = logits[index];
  }
  std::fill(score, p.scores + row + p.top_n, kNone);
  std::fill(box, p.boxes + (row + p.top_n) * 4, 0.0f);
}

}  // namespace

int run_cpu(const Params& params, const Pool& pool) try {
  if (!is_supported(params)) return 1;
  // P2 of all images first: it is by far the largest.
  for_each(pool, int64_t{params.batch} * kLevels, 1,
           [&](int64_t index, int) { run_level(params, int(index % params.batch), int(index / params.batch)); });
  return 0;
} catch (const std::bad_alloc&) { return 2; }  // cudaErrorMemoryAllocation

}  // namespace upsnet::best_anchors

UPSNET_CPU_FRONT(best_anchors)
