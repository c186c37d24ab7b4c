// NMS on CPU cores, one row of the batch a slot.
//
// The best candidates come from candidates.h. Kept boxes lie in blocks of kLanes boxes of one class, chained class by
// class: a candidate is tested against one block at a time in vector registers, and never against another class.
#include <algorithm>
#include <new>
#include <unordered_map>
#include <vector>

#include "common/exports.h"
#include "common/pool.h"
#include "nms/candidates.h"
#include "nms/kernel.cuh"
#include "nms/launch.h"

namespace upsnet::nms {
namespace {

// The boxes kept in one row.
class Kept {
 public:
  Kept(float pixel, float threshold) : pixel_(pixel), threshold_(threshold) {}

  // Keeps the box unless one of its class suppresses it.
  bool add(const Box& box, int64_t box_class) {
    const float box_area = area(box, pixel_);
    const auto [chain, is_new] = chains_.try_emplace(box_class, Chain{int(blocks_.size()), int(blocks_.size())});
    if (is_new) blocks_.emplace_back();
    for (int i = chain->second.first; i >= 0; i = blocks_[i].next) {
      if (suppressed_by(blocks_[i], box, box_area)) return false;
    }
    int& last = chain->second.last;
    if (blocks_[last].used == kLanes) {
      blocks_[last].next = int(blocks_.size());
      last = blocks_[last].next;
      blocks_.emplace_back();
    }
    Block& block = blocks_[last];
    const int lane = block.used++;
    block.x1[lane] = box.x1, block.y1[lane] = box.y1, block.x2[lane] = box.x2, block.y2[lane] = box.y2;
    block.area[lane] = box_area;
    return true;
  }

 private:
  static constexpr int kLanes = 16;

  struct Block {
    Block() { std::fill(area, area + kLanes, __builtin_nanf("")); }  // free lanes: their IoU is NaN
    float x1[kLanes] = {}, y1[kLanes] = {}, x2[kLanes] = {}, y2[kLanes] = {}, area[kLanes];
    int used = 0, next = -1;
  };
  struct Chain {
    int first, last;  // blocks
  };

  bool suppressed_by(const Block& block, const Box& box, float box_area) const {
    int hits = 0;
#pragma omp simd reduction(| : hits)
    for (int lane = 0; lane < kLanes; ++lane) {
      const Box kept{block.x1[lane], block.y1[lane], block.x2[lane], block.y2[lane]};
      hits |= suppresses(kept, block.area[lane], box, box_area, pixel_, threshold_);
    }
    return hits != 0;
  }

  float pixel_, threshold_;
  std::vector<Block> blocks_;
  std::unordered_map<int64_t, Chain> chains_;
};

void run_row(const Params& params, int row) {
  constexpr size_t kFirstBatch = 256;  // doubles from batch to batch: few passes over the scores, however many it takes
  const int64_t start = int64_t{row} * params.num_boxes;
  const float* boxes = params.boxes + start * 4;
  int64_t* indices = params.indices + int64_t{row} * params.max_output;
  Candidates candidates(params.scores + start, params.num_boxes, params.score_threshold);
  Kept kept(params.inclusive ? 1.0f : 0.0f, params.iou_threshold);
  int count = 0;
  for (size_t wanted = kFirstBatch; count < params.max_output; wanted *= 2) {
    const Candidates::Batch batch = candidates.next(wanted);
    if (batch.first == batch.last) break;
    for (const uint64_t* key = batch.first; key != batch.last && count < params.max_output; ++key) {
      const uint32_t index = index_of(*key);
      const float* corners = boxes + size_t{index} * 4;
      const int64_t box_class = params.classes ? params.classes[start + index] : 0;
      if (kept.add({corners[0], corners[1], corners[2], corners[3]}, box_class)) indices[count++] = index;
    }
  }
  std::fill(indices + count, indices + params.max_output, 0);
  params.counts[row] = count;
}

}  // namespace

int run_cpu(const Params& params, const Pool& pool) try {
  if (!is_supported(params)) return 1;
  for_each(pool, params.batch, 1, [&](int64_t row, int) { run_row(params, int(row)); });
  return 0;
} catch (const std::bad_alloc&) { return 2; }  // cudaErrorMemoryAllocation

}  // namespace upsnet::nms

UPSNET_CPU_FRONT(nms)
