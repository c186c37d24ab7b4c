// Step 1 of 3 on a GPU (launch.cu), its first half: prune.cuh continues with the bits.
// Every detection's mask as bits, and who competes with whom. Being first, it clears what later launches add to.
#pragma once

#include <climits>

#include "panoptic_fusion/workspace.cuh"

namespace upsnet::panoptic_fusion {

constexpr int kRasterWarps = 4;
constexpr int kRasterThreads = 32 * kRasterWarps;
constexpr int kRasterBlocks = 16;  // for each detection

// The class in which a detection competes; the last one of all where it is dropped.
__device__ inline int class_of(const Params& p, int image, int detection, const Valid& valid) {
  const size_t row = size_t(image) * p.detections + detection;
  if (detection >= valid.detections || !is_usable(p, row)) return INT_MAX;
  return p.heuristic ? 0 : int(p.classes[row]);
}

// Puts a detection in its place among the members. The whole block calls it.
__device__ inline void list_member(const Params& p, const Workspace& workspace, int image, int detection,
                                   const Valid& valid, const Clip& clip) {
  const int t = threadIdx.y * 32 + threadIdx.x, own = class_of(p, image, detection, valid);
  int place = 0;
  for (int first = 0; first < p.detections; first += kRasterThreads) {
    const int other = first + t, theirs = other < p.detections ? class_of(p, image, other, valid) : INT_MAX;
    place += __syncthreads_count(theirs < own || (theirs == own && other < detection));
  }
  if (t != 0) return;
  const int word = clip.first_x / 32;
  const Span span{word, clip.last_x / 32 - word, clip.first_y, clip.last_y - clip.first_y};
  workspace.members[size_t(image) * p.detections + place] = {detection, own, clip.empty() ? nowhere() : span};
}

// Where pixel x of a box low .. high lies among the mask's cells; first: the box's first pixel, count: how many it has.
template <bool kHeuristic>
__device__ Sample place_of(int x, int first, int count, float low, float high, int cells) {
  if (kHeuristic) return pasted_sample_of(clamped(x, first, first + count - 1), low, high, cells);
  return sample_of(x - first, count, cells);
}

// The logits of two cells, one above the other; around the mask of the heuristic merge -infinity.
struct Cells {
  float upper, lower;
};

template <bool kHeuristic, typename T>
__device__ Cells cells_at(const T* mask, int cells, int row, int column) {
  if (!kHeuristic) {
    const T* at = mask + smaller(column, cells - 1);
    return {logit_of(at[row * cells]), logit_of(at[next_cell(row, cells) * cells])};
  }
  const T* at = mask + row * cells + column;
  const bool inside = column >= 0 && column < cells;
  return {inside && row >= 0 && row < cells ? logit_of(at[0]) : -INFINITY,
          inside && row + 1 >= 0 && row + 1 < cells ? logit_of(at[cells]) : -INFINITY};
}

template <bool kHeuristic>
__device__ float blend(const Cells& cells, float weight) {
  if (!kHeuristic) return lerp(cells.upper, cells.lower, weight);
  const auto probability = [](float logit) { return logit == -INFINITY ? 0.0f : probability_of(logit); };
  return lerp(probability(cells.upper), probability(cells.lower), weight);
}

// Whether pixels between four cells are all set (1) or none is (-1), for the heuristic merge; else 0. A blend lies
// between what it blends; the margin is far wider than what rounding can do. The whole warp calls it and agrees.
__device__ inline int sure_of(const Cells& left, const Cells& right) {
  constexpr float kMargin = 0.1f;  // of a logit: .025 of a probability
  const float least = lower(lower(left.upper, left.lower), lower(right.upper, right.lower));
  const float most = higher(higher(left.upper, left.lower), higher(right.upper, right.lower));
  if (__all_sync(~0u, least > kMargin)) return 1;
  return __all_sync(~0u, most < -kMargin) ? -1 : 0;
}

// Of a run of columns first .. last that lie between the same two cells, those that are set. at_left, at_right: the
// cells, blended to the lane's row; column: the lane's own. From one cell to the next the values of a row rise or fall:
// where its ends are alike, the whole run is. The whole warp calls it.
template <bool kHeuristic>
__device__ unsigned set_columns(const Sample& column, int first, int last, float at_left, float at_right) {
  const float rise = at_right - at_left;
  const auto is_set = [&](int i) {
    const float value = multiply_add(__shfl_sync(~0u, column.weight, i), rise, at_left);  // lerp
    return kHeuristic ? is_pasted(value) : value > 0.0f;
  };
  const unsigned run = ~0u >> (31 - (last - first)) << first;
  const bool begins = is_set(first), ends = is_set(last);
  if (__all_sync(~0u, begins == ends)) return begins ? run : 0u;
  unsigned bits = 0;
#pragma unroll 4
  for (int i = first; i <= last; ++i) bits |= unsigned(is_set(i)) << i;
  return bits;
}

// The bits of 32 columns for the lane's row. The whole warp calls it; first .. last: the columns inside the box.
template <bool kHeuristic, typename T>
__device__ unsigned rasterize_row(const T* mask, int cells, const Sample& row, const Sample& column, int first,
                                  int last) {
  Cells left{}, right{};
  float at_left = 0.0f, at_right = 0.0f;
  bool blended = false;  // at_right is what it says
  unsigned bits = 0;
  for (int loaded = -3; first <= last;) {
    const int cell = __shfl_sync(~0u, column.cell, first);
    const unsigned between = __ballot_sync(~0u, column.cell == cell);
    const int stop = smaller(last, 31 - __clz(between));
    const bool next = cell == loaded + 1;
    left = next ? right : cells_at<kHeuristic>(mask, cells, row.cell, cell);
    right = cells_at<kHeuristic>(mask, cells, row.cell, cell + 1);
    const int sure = kHeuristic ? sure_of(left, right) : 0;
    if (sure == 0) {
      at_left = next && blended ? at_right : blend<kHeuristic>(left, row.weight);
      at_right = blend<kHeuristic>(right, row.weight);
      bits |= set_columns<kHeuristic>(column, first, stop, at_left, at_right);
    } else if (sure > 0) {
      bits |= ~0u >> (31 - (stop - first)) << first;
    }
    blended = sure == 0;
    loaded = cell, first = stop + 1;
  }
  return bits;
}

// Every detection's mask as bits: mask term > 0, or is_pasted. A warp makes 32 x 32 pixels at a time, a lane a row.
// grid: (kRasterBlocks, detections or 1, batch).
template <typename T, bool kHeuristic>
__global__ void __launch_bounds__(kRasterThreads) rasterize(Params p, Workspace workspace) {
  const int image = blockIdx.z, detection = blockIdx.y, lane = threadIdx.x;
  const size_t block = (size_t(image) * gridDim.y + detection) * gridDim.x + blockIdx.x;
  const size_t threads = size_t(gridDim.x) * gridDim.y * gridDim.z * kRasterThreads;
  uint4* cleared = reinterpret_cast<uint4*>(workspace.votes);
  for (size_t i = block * kRasterThreads + threadIdx.y * 32 + lane; i < workspace.cleared / 16; i += threads) {
    cleared[i] = make_uint4(0, 0, 0, 0);
  }
  if (detection >= p.detections) return;

  const size_t row = size_t(image) * p.detections + detection;
  const Valid valid = valid_of(p, image);
  const float* box = p.boxes + 4 * row;
  Window window{};
  Clip clip{0, 0, -1, -1};
  if (class_of(p, image, detection, valid) != INT_MAX) {
    window = window_at<kHeuristic>(box);
    clip = clip_of(window, valid);
  }
  // The last block has the fewest pixels.
  if (blockIdx.x == gridDim.x - 1) list_member(p, workspace, image, detection, valid, clip);
  if (clip.empty()) return;

  const float x1 = bounded_coordinate(box[0]), y1 = bounded_coordinate(box[1]);
  const float x2 = bounded_coordinate(box[2]), y2 = bounded_coordinate(box[3]);
  const int across_box = window.right - window.left + 1, down_box = window.bottom - window.top + 1;
  const int cells = p.mask_size, words = (kScale * p.width + 31) / 32;
  const T* mask = static_cast<const T*>(p.mask_logits) + row * cells * cells;
  unsigned* bits = workspace.masks + row * kScale * p.height * words;
  const int first_word = clip.first_x / 32, across = clip.last_x / 32 - first_word + 1;
  const int tiles = across * ((clip.last_y - clip.first_y) / 32 + 1);
  for (int tile = blockIdx.x * kRasterWarps + threadIdx.y; tile < tiles; tile += gridDim.x * kRasterWarps) {
    const int word = first_word + tile % across, y = clip.first_y + tile / across * 32 + lane;
    const Sample column = place_of<kHeuristic>(32 * word + lane, window.left, across_box, x1, x2, cells);
    const Sample own_row = place_of<kHeuristic>(smaller(y, clip.last_y), window.top, down_box, y1, y2, cells);
    const int first = larger(clip.first_x - 32 * word, 0), last = smaller(clip.last_x - 32 * word, 31);
    const unsigned own = rasterize_row<kHeuristic>(mask, cells, own_row, column, first, last);
    if (y <= clip.last_y) bits[y * words + word] = own;
  }
}

}  // namespace upsnet::panoptic_fusion
