// Which candidates of a round are kept: in chunks of 128, each candidate against the boxes kept before, then against
// the better ones of its chunk into a bit matrix, which one warp resolves 32 candidates at a time. 8 threads share the
// tests of a candidate.
//
// The round's kept boxes hang in chains, 8 for each tag of a class: a candidate meets its own class and little else.
// Without classes the 8 chains have an eighth of all boxes each. Kept boxes of earlier rounds lie in the workspace.
#pragma once

#include "nms/round.cuh"

namespace upsnet::nms {
namespace {

__device__ bool tested(const Box& kept, const Box& other, float pixel, float threshold) {
  return !apart(kept, other, pixel) && suppresses(kept, area(kept, pixel), other, area(other, pixel), pixel, threshold);
}

template <bool kByClass>
__device__ bool is_rival(const Shared& shared, int candidate, int64_t own_class) {
  return !kByClass || shared.classes[candidate] == own_class;
}

// Which of the chunk's candidates are kept, by one warp. A candidate is out once a better one that overlaps it is kept,
// and kept once all of those are out; each pass of the inner loop settles at least the best one that is open, usually
// nearly all.
__device__ void resolve(Shared& shared, int first, int count) {
  const int lane = threadIdx.x;
  uint32_t kept[kWords];
#pragma unroll
  for (int word = 0; word < kWords; ++word) {
    const int position = word * 32 + lane;
    bool is_open = first + position < count && !(shared.dead[word] >> lane & 1u);
    uint32_t rivals = 0;
#pragma unroll
    for (int other = 0; other <= word; ++other) {
      rivals = shared.tests.suppressors[2 * other][position] |
               uint32_t{shared.tests.suppressors[2 * other + 1][position]} << 16;
      if (other < word) is_open &= !(rivals & kept[other]);
    }
    kept[word] = 0;
    for (uint32_t open = __ballot_sync(kAll, is_open); open != 0; open = __ballot_sync(kAll, is_open)) {
      const bool wins = is_open && !(rivals & open);
      kept[word] |= __ballot_sync(kAll, wins);
      is_open = is_open && !wins && !(rivals & kept[word]);
    }
    if (lane == 0) shared.kept[word] = kept[word];
  }
  __syncwarp();
  if (lane < kWords) shared.dead[lane] = 0;  // of the next chunk
}

// The candidates from `first` on, of the round's `count`. `earlier` boxes were kept in earlier rounds, `kept` up to
// this chunk; what survives is appended to the row's outputs. Returns the new number of kept boxes.
template <bool kByClass>
__device__ int suppress_chunk(Shared& shared, const Row& row, const Params& params, int first, int count, int earlier,
                              int kept) {
  const int position = threadIdx.x % kChunk, part = threadIdx.x / kChunk;
  const int word = position / 32, lane = position % 32, candidate = first + position;
  const float pixel = params.inclusive ? 1.0f : 0.0f;
  const bool exists = candidate < count;
  const Box own = shared.boxes[candidate];
  const int64_t own_class = kByClass ? shared.classes[candidate] : 0;

  bool hit = false;
  for (int other = part; other < earlier && !hit; other += kParts) {
    if (kByClass && row.kept_classes[other] != own_class) continue;
    hit = tested(row.kept_boxes[other], own, pixel, params.iou_threshold);
  }
  const uint32_t own_tag = shared.sorted.tags[candidate];
  uint32_t* const chain = &shared.tests.heads[own_tag % kTags * kParts];
  for (uint32_t other = exists ? chain[part] : kEnd; other != kEnd && !hit; other = shared.tests.next[other]) {
    hit = is_rival<kByClass>(shared, other, own_class) && tested(shared.boxes[other], own, pixel, params.iou_threshold);
  }
  const unsigned hits = __ballot_sync(kAll, hit);
  if (lane == 0 && hits != 0) atomicOr(&shared.dead[word], hits);
  __syncthreads();

  const int share = part * kShare, better = min(max(position - share, 0), kShare);  // of the share's candidates
  const bool is_alive = exists && !(shared.dead[word] >> lane & 1u);
  uint32_t rivals = ~(shared.dead[part / 2] >> share % 32) & (is_alive ? (1u << better) - 1 : 0u);
  if (kByClass && rivals != 0) {
    uint32_t same = 0;
#pragma unroll
    for (int i = 0; i < kShare; ++i) same |= uint32_t(shared.sorted.tags[first + share + i] == own_tag) << i;
    rivals &= same;
  }
  uint32_t overlapping = 0;
  for (; rivals != 0; rivals &= rivals - 1) {
    const int bit = __ffs(rivals) - 1, other = first + share + bit;
    if (!is_rival<kByClass>(shared, other, own_class)) continue;
    if (tested(shared.boxes[other], own, pixel, params.iou_threshold)) overlapping |= 1u << bit;
  }
  shared.tests.suppressors[part][position] = uint16_t(overlapping);
  __syncthreads();
  if (threadIdx.x < 32) resolve(shared, first, count);
  __syncthreads();

  int rank = kept, total = kept;
  for (int i = 0; i < kWords; ++i) {
    const int here = __popc(shared.kept[i]);
    total += here;
    if (i < word) rank += here;
  }
  const uint32_t survivors = shared.kept[word];
  rank += __popc(survivors & ((1u << lane) - 1));
  if (part == 0 && (survivors >> lane & 1u) && rank < params.max_output) {
    row.indices[rank] = shared.sorted.indices[candidate];
    row.kept_boxes[rank] = own;
    if (kByClass) row.kept_classes[rank] = own_class;
    shared.tests.next[candidate] = uint16_t(atomicExch(&chain[rank % kParts], uint32_t(candidate)));
  }
  __syncthreads();
  return min(total, params.max_output);
}

}  // namespace
}  // namespace upsnet::nms
