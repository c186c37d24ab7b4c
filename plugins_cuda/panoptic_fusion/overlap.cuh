// Step 1 of 3 on a GPU (launch.cu), for the heuristic merge: after the masks are bits, before prune (prune.cuh)
// decides. How much of each mask the accepted ones before it cover, for all of them at once: by guessing who was
// accepted.
//
// Whether a detection is accepted depends on those before it: a chain of up to 254 steps over whole masks. Here instead
// every thread takes one word of the map through all masks in order, with the union of those that a guess accepts, and
// counts; from the counts follows the next guess. The first accepts all, as far as an overlap of 0 does. Since more
// accepted before mean fewer after, guesses lie in turn above and below the truth, each within the one but last. So
// where two in a row agree on a detection, that is its answer; and whatever the masks, a round settles the first open
// detection at least. kRounds of them serve; what is open still (a chain of that many masks, each of which decides
// about the next) prune settles one after the other.
#pragma once

#include "panoptic_fusion/workspace.cuh"

namespace upsnet::panoptic_fusion {

constexpr int kOverlapBatch = 16;  // masks whose words are on their way together

struct Guess {
  bool accepted;
  bool certain;
};

// Of detection d, after `rounds` rounds. The whole block calls it, each detection with a thread of its own; d may be
// beyond them. Where all were certain earlier, the later rounds counted nothing.
__device__ inline Guess last_guess(const Params& p, const Workspace& workspace, int image, int d, int rounds) {
  const bool exists = d < p.detections;
  const size_t row = size_t(image) * p.detections + d;
  const int area = exists ? workspace.mask_areas[row] : 0;
  bool accepted = is_accepted(0, area, p.mask_overlap_threshold);
  bool certain = !accepted;  // the first guess accepts everyone who can be
  for (int round = 0; round < rounds; ++round) {
    if (__syncthreads_and(certain)) break;
    const bool before = accepted;
    const int overlap = exists ? workspace.overlaps[size_t(round) * p.batch * p.detections + row] : 0;
    accepted = is_accepted(overlap, area, p.mask_overlap_threshold);
    certain = accepted == before;
  }
  return {accepted, certain};
}

// A mask's place among the words of the map. Without words where first_word is that of no map.
struct Words {
  int first_word, across, first_y, down;  // across, down: one less than their number
  const unsigned* bits;                   // of the plane's first word
  unsigned accepted;                      // all bits, or none

  __device__ bool have(int word, int y) const {
    return (unsigned(word - first_word) <= unsigned(across)) & (unsigned(y - first_y) <= unsigned(down));
  }
};

// Round `round`: the overlap of every mask with the union of those before it that the last guess accepts. A block has
// kLabels words, and as many threads. grid: (words of a plane by kLabels, 1, batch).
__global__ void __launch_bounds__(kLabels) count_overlaps(Params p, Workspace workspace, int round) {
  __shared__ Words list[kLabels];          // the masks near the block's words, in score order; then some without words
  __shared__ uint8_t detections[kLabels];  // which these are
  __shared__ int overlaps[kLabels];
  const int image = blockIdx.z, t = threadIdx.x, lane = t % 32;
  const Valid valid = valid_of(p, image);
  const int words = (kScale * p.width + 31) / 32, first = int(blockIdx.x) * kLabels;
  const int first_y = first / words, last_y = (first + kLabels - 1) / words;
  if (first_y >= valid.height) return;
  const Guess guess = last_guess(p, workspace, image, t, round);
  if (__syncthreads_and(guess.certain)) return;

  const size_t plane = size_t(kScale) * p.height * words, first_row = size_t(image) * p.detections;
  Clip clip{};
  bool near = t < p.detections && is_accepted(0, workspace.mask_areas[first_row + t], p.mask_overlap_threshold);
  if (near) {
    clip = clip_of(window_of(p, first_row + t), valid);
    near = clip.first_y <= last_y && clip.last_y >= first_y;
  }
  overlaps[t] = 0;
  list[t] = {1 << 30, 0, 0, 0, nullptr, 0u};
  int count = 0;
  const int place = rank_of(near, count);  // a barrier
  if (near) {
    const int word = clip.first_x / 32;
    list[place] = {word,
                   clip.last_x / 32 - word,
                   clip.first_y,
                   clip.last_y - clip.first_y,
                   workspace.masks + (first_row + t) * plane,
                   guess.accepted ? ~0u : 0u};
    detections[place] = uint8_t(t);
  }
  __syncthreads();

  const int i = first + t, y = i / words, word = i % words;
  unsigned taken = 0;
  for (int start = 0; start < count; start += kOverlapBatch) {  // kLabels is a multiple of kOverlapBatch
    unsigned mask[kOverlapBatch];
#pragma unroll
    for (int k = 0; k < kOverlapBatch; ++k) mask[k] = list[start + k].have(word, y) ? list[start + k].bits[i] : 0;
    int own = 0;  // lane k: of mask k
#pragma unroll
    for (int k = 0; k < kOverlapBatch; ++k) {
      const int overlap = warp_add(~0u, __popc(mask[k] & taken));
      if (lane == k) own = overlap;
      taken |= mask[k] & list[start + k].accepted;
    }
    if (own > 0) atomicAdd(&overlaps[start + lane], own);
  }
  __syncthreads();
  if (t >= count || overlaps[t] == 0) return;
  const size_t row = size_t(round) * p.batch * p.detections + first_row + detections[t];
  atomicAdd(&workspace.overlaps[row], overlaps[t]);
}

}  // namespace upsnet::panoptic_fusion
