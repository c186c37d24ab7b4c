// Step 1 of 3 on a GPU (launch.cu): rasterize and prune. Before channels.cuh and label.cuh.
// Which detections stay: their masks as bits, then greedy pruning, class by class or (heuristic) of all together. There
// overlap.cuh comes between them and leaves little to do.
#pragma once

#include "panoptic_fusion/overlap.cuh"

namespace upsnet::panoptic_fusion {

constexpr int kRasterWarps = 4;
constexpr int kRasterBlocks = 16;  // for each detection
constexpr int kPruneThreads = 512;

// Where pixel x of a box low .. high lies among the mask's cells; first: the box's first pixel, count: how many it has.
template <bool kHeuristic>
__device__ Sample place_of(int x, int first, int count, float low, float high, int cells) {
  if (kHeuristic) return pasted_sample_of(clamped(x, first, first + count - 1), low, high, cells);
  return sample_of(x - first, count, cells);
}

// Two cells side by side in a mask's row.
struct Sides {
  float left, right;
};

template <bool kHeuristic, typename T>
__device__ Sides sides_of(const T* mask, int cells, int row, int column) {
  if (kHeuristic) return {probability_at(mask, cells, row, column), probability_at(mask, cells, row, column + 1)};
  const T* line = mask + smaller(row, cells - 1) * cells;
  return {logit_of(line[column]), logit_of(line[next_cell(column, cells)])};
}

// Whether the cells that a tile's pixels lie between make all of them set (1) or none (-1); else 0. A blend lies
// between what it blends; the margin is far wider than what rounding can do. Columns and rows are of the lanes;
// `last_row` is the lane of the last one. The whole warp calls it.
template <typename T>
__device__ int sure_of(const T* mask, int cells, int own_column, int own_row, int last_row) {
  constexpr float kMargin = 0.1f;  // of a logit: .025 of a probability
  const int left = __shfl_sync(~0u, own_column, 0), top = __shfl_sync(~0u, own_row, 0);
  const int across = __shfl_sync(~0u, own_column, 31) - left + 2;  // with the cells to the right of the last pixels
  const int count = across * (__shfl_sync(~0u, own_row, last_row) - top + 2);
  if (count > 64) return 0;  // a small box: its cells are as many as its pixels
  bool set = true, clear = true;
  for (int i = threadIdx.x; i < count; i += 32) {
    const int row = top + i / across, column = left + i % across;
    const bool exists = row >= 0 && row < cells && column >= 0 && column < cells;
    const float logit = exists ? logit_of(mask[row * cells + column]) : -1.0f;  // 0 is around the mask
    set &= logit > kMargin, clear &= logit < -kMargin;
  }
  if (__all_sync(~0u, set)) return 1;
  return __all_sync(~0u, clear) ? -1 : 0;
}

// Every detection's mask as bits (mask term > 0, or is_pasted), and their sum. A warp makes 32 x 32 pixels at a time:
// lane = column; the four mask cells around stay in registers until the row moves on to the next cells. grid:
// (kRasterBlocks, detections, batch).
template <typename T, bool kHeuristic>
__global__ void __launch_bounds__(32 * kRasterWarps) rasterize(Params p, Workspace workspace) {
  const int image = blockIdx.z, detection = blockIdx.y, lane = threadIdx.x;
  const size_t row = size_t(image) * p.detections + detection;
  const Valid valid = valid_of(p, image);
  if (detection >= valid.detections || !is_usable(p, row)) return;
  const float* box = p.boxes + 4 * row;
  const Window window = window_at<kHeuristic>(box);
  const Clip clip = clip_of(window, valid);
  if (clip.empty()) return;

  const float x1 = bounded_coordinate(box[0]), y1 = bounded_coordinate(box[1]);
  const float x2 = bounded_coordinate(box[2]), y2 = bounded_coordinate(box[3]);
  const int across_box = window.right - window.left + 1, down_box = window.bottom - window.top + 1;
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
    const Sample column = place_of<kHeuristic>(x, window.left, across_box, x1, x2, cells);
    const Sample own_row = place_of<kHeuristic>(first_y + lane, window.top, down_box, y1, y2, cells);
    Sides upper{}, lower{};
    int loaded = -3;
    const int sure = kHeuristic ? sure_of(mask, cells, column.cell, own_row.cell, rows - 1) : 0;
    unsigned own = __ballot_sync(~0u, inside && sure > 0);
    if (lane >= rows) own = 0;
    for (int r = 0; r < rows && sure == 0; ++r) {
      const int cell = __shfl_sync(~0u, own_row.cell, r);
      const float weight = __shfl_sync(~0u, own_row.weight, r);
      if (cell != loaded) {
        upper = cell == loaded + 1 ? lower : sides_of<kHeuristic>(mask, cells, cell, column.cell);
        lower = sides_of<kHeuristic>(mask, cells, cell + 1, column.cell);
        loaded = cell;
      }
      const float left = lerp(upper.left, lower.left, weight), right = lerp(upper.right, lower.right, weight);
      const float value = lerp(left, right, column.weight);
      const unsigned line = __ballot_sync(~0u, inside && (kHeuristic ? is_pasted(value) : value > 0.0f));
      if (lane == r) own = line;
    }
    if (lane < rows) bits[(first_y + lane) * words + word] = own;
    area += __popc(own);
  }
  area = warp_add(~0u, area);
  if (lane == 0 && area > 0) atomicAdd(&workspace.mask_areas[row], area);
}

// A set of detections: bit d % 32 of word d / 32 is detection d.
struct Members {
  unsigned words[kLabels / 32];
};

// The whole block calls it, with its detections' threads first.
__device__ inline void collect(bool member, Members& members) {
  const unsigned chosen = __ballot_sync(~0u, member);
  if (threadIdx.x < kLabels && threadIdx.x % 32 == 0) members.words[threadIdx.x / 32] = chosen;
}

// Fills clips, members and hull (around the members' clips) for the `slot`-th class of an image, in the order in which
// the classes appear among its detections; the heuristic merge has one class. The whole block calls it; false when
// there is no such class.
__device__ inline bool find_members(const Params& p, int image, int slot, Clip* clips, Members& members, Clip& hull) {
  __shared__ int classes[kLabels];
  __shared__ unsigned leaders[kLabels / 32];
  __shared__ int own_class;
  const int t = threadIdx.x;
  const size_t row = size_t(image) * p.detections + t;
  const Valid valid = valid_of(p, image);
  if (t == 0) own_class = -1, hull = {0x7fffffff, 0x7fffffff, -1, -1};
  if (t < kLabels) {
    const bool usable = t < valid.detections && is_usable(p, row);
    classes[t] = !usable ? -1 : p.heuristic ? 0 : int(p.classes[row]);
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
  collect(member, members);
  if (member) {
    const Clip clip = clips[t] = clip_of(window_of(p, row), valid);
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

// Greedy pruning: one block for each class of an image, its detections in score order. What the heuristic merge knows
// already is taken as it is. grid: (slots, batch).
__global__ void __launch_bounds__(kPruneThreads) prune(Params p, Workspace workspace) {
  __shared__ Clip clips[kLabels], hull;
  __shared__ Members members, open, known;  // open: yet to be decided; known: accepted
  __shared__ int partial[2][kPruneThreads / 32];
  const int image = blockIdx.y, t = threadIdx.x;
  if (!find_members(p, image, blockIdx.x, clips, members, hull)) return;

  const int words = (kScale * p.width + 31) / 32;
  const size_t plane = size_t(kScale) * p.height * words, first_row = size_t(image) * p.detections;
  const bool member = t < kLabels && members.words[t / 32] >> t % 32 & 1u;
  const Guess guess = p.heuristic ? last_guess(p, workspace, image, t, kRounds) : Guess{false, false};
  collect(member && !guess.certain, open);
  collect(member && guess.certain && guess.accepted, known);
  if (member && guess.certain && guess.accepted) workspace.accepted[first_row + t] = 1;
  __syncthreads();

  unsigned* taken = workspace.unions + (size_t(image) * gridDim.x + blockIdx.x) * plane;
  int left = 0, all = 0;  // open ones to come
  for (int word = 0; word < kLabels / 32; ++word) {
    left += __popc(open.words[word]), all += __popc(members.words[word]);
  }
  if (left > 0 && all > 1) for_words(hull, words, [&](int i) { taken[i] = 0; });
  __syncthreads();

  bool any = false;
  int turn = 0;
  for (int word = 0; word < kLabels / 32; ++word) {
    for (unsigned bits = open.words[word] | known.words[word]; bits != 0 && left > 0; bits &= bits - 1) {
      const int bit = __ffs(bits) - 1, detection = 32 * word + bit;
      const unsigned* mask = workspace.masks + (first_row + detection) * plane;
      if (open.words[word] >> bit & 1u) {
        const int area = workspace.mask_areas[first_row + detection];
        int overlap = 0;
        if (any && area > 0) {
          for_words(clips[detection], words, [&](int i) { overlap += __popc(mask[i] & taken[i]); });
          overlap = warp_add(~0u, overlap);
          if (t % 32 == 0) partial[turn][t / 32] = overlap;
          __syncthreads();
          // Every thread adds up; the other half of `partial` serves next time, so nobody has to wait for it.
          overlap = 0;
          for (int warp = 0; warp < kPruneThreads / 32; ++warp) overlap += partial[turn][warp];
          turn ^= 1;
        }
        --left;
        if (!is_accepted(overlap, area, p.mask_overlap_threshold)) continue;
        if (t == 0) workspace.accepted[first_row + detection] = 1;
      }
      any = true;
      if (left > 0) for_words(clips[detection], words, [&](int i) { taken[i] |= mask[i]; });
      __syncthreads();
    }
  }
}

}  // namespace upsnet::panoptic_fusion
