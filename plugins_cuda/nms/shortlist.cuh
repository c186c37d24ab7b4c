// The shortlist of a long row: every warp's few best candidates, in order. One read of the scores, by as many
// multiprocessors as there are; no barrier, no atomic, nothing that must have been cleared.
//
// A warp has 128 scores, four of which lie side by side: the others come from all over the row, so that a stretch of
// high ones (boxes sorted by score, one class after the other) is shared among the warps. The 8 warps of a block have
// neighbouring fours, 128 bytes in all.
//
// What is below the last candidate of a full list may be missing. So the shortlist is complete down to the greatest of
// these last ones, its floor (launch.cu): of 80 000 scores these are some 1300 to 3000 candidates, of 20 000 some 700.
#pragma once

#include <climits>

#include "common/cuda.h"
#include "common/warp.cuh"
#include "nms/kernel.cuh"

namespace upsnet::nms {
namespace {

constexpr int kListed = 12;              // candidates of a list, at most
constexpr int kPerLane = 4;              // scores
constexpr int kPerList = 32 * kPerLane;  // scores
constexpr int kFour = 4;                 // scores side by side
constexpr int kListThreads = 256, kListsOfBlock = kListThreads / 32;
constexpr int kNoOrder = INT_MIN;

inline int num_lists(int num_boxes) { return (num_boxes + kPerList - 1) / kPerList; }

// Into L2, where nms_kernel will look.
__device__ __forceinline__ void prefetch(const void* address) {
#ifdef UPSNET_EMULATED
  static_cast<void>(address);
#else
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
#endif
}

// lists[row][list][kListed]: keys, descending; 0 where a list has no more.
__global__ void __launch_bounds__(kListThreads) shortlist_kernel(Params params, uint64_t* lists, int num_lists) {
  const int lane = threadIdx.x % 32, blocks = (num_lists + kListsOfBlock - 1) / kListsOfBlock;
  const int row = blockIdx.x / blocks, list = blockIdx.x % blocks * kListsOfBlock + threadIdx.x / 32;
  if (list >= num_lists) return;
  const int64_t start = int64_t{row} * params.num_boxes;
  const int first = (lane / kFour * num_lists + list) * kFour + lane % kFour, step = 32 * num_lists;
  float scores[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int index = first + i * step;
    scores[i] = index < params.num_boxes ? params.scores[start + index] : __int_as_float(0x7fffffff);
  }
  int orders[kPerLane];  // order_of as a signed number, for warp_max
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    orders[i] = scores[i] > params.score_threshold ? int(order_of(scores[i]) ^ 0x80000000u) : kNoOrder;
  }
  uint64_t own = 0;
#pragma unroll 1
  for (int place = 0; place < kListed; ++place) {
    const int best = warp_max(~0u, max(max(orders[0], orders[1]), max(orders[2], orders[3])));
    if (best == kNoOrder) break;
    int index = INT_MAX;  // the lowest one of those with this order
#pragma unroll
    for (int i = kPerLane - 1; i >= 0; --i) index = orders[i] == best ? first + i * step : index;
    index = warp_min(~0u, index);
    if (lane == place) own = uint64_t{uint32_t(best) ^ 0x80000000u} << 32 | uint32_t(~index);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) orders[i] = index == first + i * step ? kNoOrder : orders[i];
  }
  if (lane >= kListed) return;
  lists[(int64_t{row} * num_lists + list) * kListed + lane] = own;
  if (own == 0) return;
  prefetch(params.boxes + (start + index_of(own)) * 4);
  if (params.classes) prefetch(params.classes + start + index_of(own));
}

}  // namespace
}  // namespace upsnet::nms
