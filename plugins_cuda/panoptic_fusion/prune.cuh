// Step 1 of 3 on a GPU (launch.cu): rasterize and prune. Before channels.cuh and label.cuh.
// Which detections stay: their masks as bits, then greedy pruning class by class.
#pragma once

#include "panoptic_fusion/workspace.cuh"

namespace upsnet::panoptic_fusion {

constexpr int kRasterWarps = 4;
constexpr int kRasterBlocks = 16;  // for each detection
constexpr int kPruneThreads = 512;

// The bits `mask term > 0` of every detection, and their sum. A warp makes 32 x 32 pixels at a time: lane = column; the
// four mask cells around stay in registers until the row moves on to the next cells. grid: (kRasterBlocks, detections,
// batch).
template <typename T>
__global__ void __launch_bounds__(32 * kRasterWarps) rasterize(Params p, Workspace workspace) {
  const int image = blockIdx.z, detection = blockIdx.y, lane = threadIdx.x;
  const size_t row = size_t(image) * p.detections + detection;
  const Valid valid = valid_of(p, image);
  if (detection >= valid.detections || !is_usable(p.boxes + 4 * row, p.classes[row], p.num_things)) return;
  const Window window = window_of(p.boxes + 4 * row);
  const Clip clip = clip_of(window, valid);
  if (clip.empty()) return;

  const int cells = p.mask_size, words = (kScale * p.width + 31) / 32;
  const T* mask = static_cast<const T*>(p.mask_logits) + row * cells * cells;
  unsigned* bits = workspace.masks + row * kScale * p.height * words;
  const int first_word = clip.first_x / 32, across = clip.last_x / 32 - first_word + 1;
  const int tiles = across * ((clip.last_y - clip.first_y) / 32 + 1);
  int area = 0;
  for (int tile = blockIdx.x * kRasterWarps + threadIdx.y; tile < tiles; tile += gridDim.x * kRasterWarps) {
    const int word = first_word + tile % across, first_y = clip.first_y + tile / across * 32;
    const int x = 32 * word + lane, rows = smaller(32, clip.last_y - first_y + 1);
    const bool inside = x >= clip.first_x && x <= clip.last_x;
    const Sample column = sample_of(x - window.left, window.right - window.left + 1, cells);
    const int next = next_cell(column.cell, cells);
    const Sample own_row = sample_of(first_y + lane - window.top, window.bottom - window.top + 1, cells);
    float upper_left = 0, upper_right = 0, lower_left = 0, lower_right = 0;
    int loaded = -1;
    unsigned own = 0;
    for (int r = 0; r < rows; ++r) {
      const int cell = __shfl_sync(~0u, own_row.cell, r);
      const float weight = __shfl_sync(~0u, own_row.weight, r);
      if (cell != loaded) {
        const T *upper = mask + cell * cells, *lower = mask + next_cell(cell, cells) * cells;
        upper_left = logit_of(upper[column.cell]), upper_right = logit_of(upper[next]);
        lower_left = logit_of(lower[column.cell]), lower_right = logit_of(lower[next]);
        loaded = cell;
      }
      const float left = lerp(upper_left, lower_left, weight), right = lerp(upper_right, lower_right, weight);
      const unsigned line = __ballot_sync(~0u, inside && lerp(left, right, column.weight) > 0.0f);
      if (lane == r) own = line;
    }
    if (lane < rows) bits[(first_y + lane) * words + word] = own;
    area += __popc(own);
  }
  area = warp_add(~0u, area);
  if (lane == 0 && area > 0) atomicAdd(&workspace.mask_areas[row], area);
}

// The detections of one class, as a set in which bit d % 32 of word d / 32 is detection d.
struct Members {
  unsigned words[kLabels / 32];
};

// Fills clips, members and hull (around the members' clips) for the `slot`-th class of an image, in the order in which
// the classes appear among its detections. The whole block calls it; false when there is no such class.
__device__ inline bool find_members(const Params& p, int image, int slot, Clip* clips, Members& members, Clip& hull) {
  __shared__ int classes[kLabels];
  __shared__ unsigned leaders[kLabels / 32];
  __shared__ int own_class;
  const int t = threadIdx.x;
  const size_t row = size_t(image) * p.detections + t;
  const Valid valid = valid_of(p, image);
  if (t == 0) own_class = -1, hull = {0x7fffffff, 0x7fffffff, -1, -1};
  if (t < kLabels) {
    const bool usable = t < valid.detections && is_usable(p.boxes + 4 * row, p.classes[row], p.num_things);
    classes[t] = usable ? int(p.classes[row]) : -1;
  }
  __syncthreads();
  bool leads = t < kLabels && classes[t] >= 0;
  for (int other = 0; leads && other < t; ++other) leads = classes[other] != classes[t];
  const unsigned leading = __ballot_sync(~0u, leads);
  if (t < kLabels && t % 32 == 0) leaders[t / 32] = leading;
  __syncthreads();
  if (leads) {
    int rank = __popc(leading & ((1u << t % 32) - 1));
    for (int word = 0; word < t / 32; ++word) rank += __popc(leaders[word]);
    if (rank == slot) own_class = classes[t];
  }
  __syncthreads();
  if (own_class < 0) return false;
  const bool member = t < kLabels && classes[t] == own_class;
  const unsigned chosen = __ballot_sync(~0u, member);
  if (t < kLabels && t % 32 == 0) members.words[t / 32] = chosen;
  if (member) {
    const Clip clip = clips[t] = clip_of(window_of(p.boxes + 4 * row), valid);
    if (!clip.empty()) {
      atomicMin(&hull.first_x, clip.first_x), atomicMin(&hull.first_y, clip.first_y);
      atomicMax(&hull.last_x, clip.last_x), atomicMax(&hull.last_y, clip.last_y);
    }
  }
  __syncthreads();
  return true;
}

// visit(word's index in a plane) for every word of a clip, spread over the block.
template <typename Visit>
__device__ void for_words(const Clip& clip, int words, Visit visit) {
  if (clip.empty()) return;
  const int first = clip.first_x / 32, across = clip.last_x / 32 - first + 1;
  const int count = across * (clip.last_y - clip.first_y + 1);
  for (int i = threadIdx.x; i < count; i += kPruneThreads) {
    visit((clip.first_y + i / across) * words + first + i % across);
  }
}

// Greedy pruning: one block for each class of an image, its detections in score order. grid: (slots, batch).
__global__ void __launch_bounds__(kPruneThreads) prune(Params p, Workspace workspace) {
  __shared__ Clip clips[kLabels], hull;
  __shared__ Members members;
  __shared__ int partial[2][kPruneThreads / 32];
  const int image = blockIdx.y;
  if (!find_members(p, image, blockIdx.x, clips, members, hull)) return;

  const int words = (kScale * p.width + 31) / 32;
  const size_t plane = size_t(kScale) * p.height * words, first_row = size_t(image) * p.detections;
  unsigned* taken = workspace.unions + (size_t(image) * gridDim.x + blockIdx.x) * plane;
  int left = 0;
  for (const unsigned word : members.words) left += __popc(word);
  if (left > 1) for_words(hull, words, [&](int i) { taken[i] = 0; });
  __syncthreads();

  bool any = false;
  int turn = 0;
  for (int word = 0; word < kLabels / 32; ++word) {
    for (unsigned bits = members.words[word]; bits != 0; bits &= bits - 1) {
      const int detection = 32 * word + __ffs(bits) - 1;
      const unsigned* mask = workspace.masks + (first_row + detection) * plane;
      const int area = workspace.mask_areas[first_row + detection];
      int overlap = 0;
      if (any && area > 0) {
        for_words(clips[detection], words, [&](int i) { overlap += __popc(mask[i] & taken[i]); });
        overlap = warp_add(~0u, overlap);
        if (threadIdx.x % 32 == 0) partial[turn][threadIdx.x / 32] = overlap;
        __syncthreads();
        // Every thread adds up; the other half of `partial` serves next time, so nobody has to wait for it.
        overlap = 0;
        for (int warp = 0; warp < kPruneThreads / 32; ++warp) overlap += partial[turn][warp];
        turn ^= 1;
      }
      --left;
      if (!is_accepted(overlap, area, p.mask_overlap_threshold)) continue;
      if (threadIdx.x == 0) workspace.accepted[first_row + detection] = 1;
      any = true;
      if (left > 0) for_words(clips[detection], words, [&](int i) { taken[i] |= mask[i]; });
      __syncthreads();
    }
  }
}

}  // namespace upsnet::panoptic_fusion
