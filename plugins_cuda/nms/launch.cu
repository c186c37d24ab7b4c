// NMS on the GPU: one kernel, one block for each row of the batch, nothing sorted but what is looked at.
//
// A candidate is a 64-bit key (kernel.cuh). In rounds, until enough boxes are kept:
//   1. find_round: how low must a key be so that the 1024 to 2048 best remaining ones are above? Histograms in shared
//      memory over 11 bits of the keys, from the top; a bin that holds too many is split by the next 11 bits. Equal
//      scores split by their index bits, so that the answer is exact for any input.
//   2. collect them into shared memory and sort them there (bitonic).
//   3. in chunks of 256 candidates: all of them against all boxes kept so far, then against each other into a bit
//      matrix, which one warp resolves 32 candidates at a time.
// 80 000 (box, class) pairs of which 100 boxes are kept: three passes over 320 KB of scores, which stay in L2 (floor:
// about 3 us a pass at the 64 bytes a cycle of one SM), and a few hundred thousand overlap tests, nearly all of them
// rejected by four comparisons. The host learns nothing: shapes are fixed, the count is an output.
#include "common/cuda.h"
#include "common/exports.h"
#include "nms/kernel.cuh"
#include "nms/launch.h"

namespace upsnet::nms {
namespace {

constexpr int kThreads = 1024, kWarps = kThreads / 32;
constexpr int kCapacity = 2048;  // keys of a round, at most; all remaining ones or half as many, at least
constexpr int kDigitBits = 11, kBins = 1 << kDigitBits;
constexpr int kChunk = 256, kWords = kChunk / 32;  // candidates that are resolved together, and as words of bits
constexpr int kParts = kThreads / kChunk;          // threads that share one candidate's tests
constexpr int kInFlight = 4;                       // loads that a thread has under way at once
constexpr unsigned kAll = 0xffffffffu;
static_assert(kBins == 2 * kThreads && kCapacity <= 2 * kThreads && kWarps == 32 && kChunk % 32 == 0);

struct Shared {
  uint64_t keys[kCapacity];
  union {
    uint32_t bins[kBins];
    uint32_t suppressors[kWords][kChunk];  // bit j of [w][i]: better candidate 32 w + j of the chunk overlaps i
  };
  Box boxes[kChunk];
  int64_t classes[kChunk];
  uint32_t alive[kWords];  // bit j of [w]: no box kept before this chunk suppresses candidate 32 w + j
  uint32_t kept[kWords];
  int warp_totals[kWarps];
  int found;
  struct {
    int digit, before, inside;  // a bin, the number of keys in higher bins, and in it; digit -1: none
  } choice;
};

struct Row {
  const float* boxes;
  const float* scores;
  const int64_t* classes;
  Box* kept_boxes;
  int64_t* kept_classes;
  int64_t* indices;
};

// visit(score, index) for every score, and visit(NaN, any) so that all threads make the same number of calls.
template <typename Visit>
__device__ void visit_scores(const float* scores, int count, Visit visit) {
  const int thread = threadIdx.x;
  const float nothing = __int_as_float(0x7fffffff);
  // Vectors of four between the first and the last 16-byte boundary; up to three single scores before and after.
  const int head = min(count, int(-(reinterpret_cast<uintptr_t>(scores) / sizeof(float)) % 4));
  const int vectors = (count - head) / 4, tail = head + vectors * 4;
  const float4* const source = reinterpret_cast<const float4*>(scores + head);
  for (int base = 0; base < vectors; base += kThreads * kInFlight) {
    float4 loaded[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int vector = base + i * kThreads + thread;
      loaded[i] = vector < vectors ? source[vector] : make_float4(nothing, nothing, nothing, nothing);
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int index = head + (base + i * kThreads + thread) * 4;
      visit(loaded[i].x, index);
      visit(loaded[i].y, index + 1);
      visit(loaded[i].z, index + 2);
      visit(loaded[i].w, index + 3);
    }
  }
  const int single = thread < head ? thread : tail + thread - head;
  visit(single < count && (thread < head || single >= tail) ? scores[single] : nothing, single);
}

// choice = the highest bin down to which (itself included) there are at least `wanted` keys.
__device__ void choose_bin(Shared& shared, int wanted) {
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int digit = kBins - 1 - 2 * thread;  // each thread has this bin and the one below
  const int upper = shared.bins[digit], both = upper + shared.bins[digit - 1];
  int sum = both;  // of this thread and those before, in the warp
  for (int delta = 1; delta < 32; delta *= 2) {
    const int other = __shfl_up_sync(kAll, sum, delta);
    if (lane >= delta) sum += other;
  }
  if (lane == 31) shared.warp_totals[warp] = sum;
  if (thread == 0) shared.choice.digit = -1;
  __syncthreads();
  const int total = shared.warp_totals[lane];
  int totals = total;  // of this warp and those before
  for (int delta = 1; delta < 32; delta *= 2) {
    const int other = __shfl_up_sync(kAll, totals, delta);
    if (lane >= delta) totals += other;
  }
  const int before = __shfl_sync(kAll, totals - total, warp) + sum - both;
  if (before < wanted && before + both >= wanted) {
    const bool first = before + upper >= wanted;
    shared.choice = {first ? digit : digit - 1, first ? before : before + upper, first ? upper : both - upper};
  }
  __syncthreads();
}

// The lowest key of the next round: the keys from there up to `upper` are at most kCapacity, and either at least half
// as many or all that remain (then 0).
__device__ uint64_t find_round(Shared& shared, const Row& row, int count, float threshold, uint64_t upper) {
  uint64_t low = 0, high = upper;  // where to look; above `high` some keys have been found already:
  int wanted = kCapacity / 2, room = kCapacity;
  for (int shift = 64 - kDigitBits;; shift = max(shift - kDigitBits, 0)) {
    for (int i = threadIdx.x; i < kBins; i += kThreads) shared.bins[i] = 0;
    __syncthreads();
    visit_scores(row.scores, count, [&](float score, int index) {
      const uint64_t key = key_of(score, threshold, index);
      if (key != 0 && key >= low && key < high) atomicAdd(&shared.bins[(key - low) >> shift], 1u);
    });
    __syncthreads();
    choose_bin(shared, wanted);
    const int digit = shared.choice.digit, before = shared.choice.before, inside = shared.choice.inside;
    if (digit < 0) return 0;
    low += uint64_t(digit) << shift;
    if (before + inside <= room) return low;  // always when shift is 0: then a bin is one key
    high = min(high, low + (uint64_t{1} << shift));
    wanted -= before;
    room -= before;
  }
}

// shared.keys = the candidates with low <= key < high, in any order; their number.
__device__ int collect(Shared& shared, const Row& row, int count, float threshold, uint64_t low, uint64_t high) {
  if (threadIdx.x == 0) shared.found = 0;
  __syncthreads();
  const int lane = threadIdx.x % 32;
  visit_scores(row.scores, count, [&](float score, int index) {
    const uint64_t key = key_of(score, threshold, index);
    const bool chosen = key != 0 && key >= low && key < high;
    const unsigned votes = __ballot_sync(kAll, chosen);
    if (votes == 0) return;
    int first = 0;
    if (lane == 0) first = atomicAdd(&shared.found, __popc(votes));
    first = __shfl_sync(kAll, first, 0);
    if (chosen) shared.keys[first + __popc(votes & ((1u << lane) - 1))] = key;
  });
  __syncthreads();
  return shared.found;
}

// Bitonic sort of shared.keys[0..found), descending.
__device__ void sort_keys(Shared& shared, int found) {
  unsigned size = 2;
  while (size < unsigned(found)) size *= 2;
  for (unsigned i = found + threadIdx.x; i < size; i += kThreads) shared.keys[i] = 0;
  __syncthreads();
  for (unsigned width = 2; width <= size; width *= 2) {
    for (unsigned stride = width / 2; stride > 0; stride /= 2) {
      if (threadIdx.x < size / 2) {
        const unsigned i = 2 * threadIdx.x - (threadIdx.x & (stride - 1));
        const uint64_t first = shared.keys[i], second = shared.keys[i + stride];
        if ((first < second) == ((i & width) == 0)) {
          shared.keys[i] = second;
          shared.keys[i + stride] = first;
        }
      }
      // While both this step and the next stay within 64 keys, a warp meets no other warp's keys.
      const unsigned next_stride = stride > 1 ? stride / 2 : width;
      if (max(stride, next_stride) > 32) {
        __syncthreads();
      } else {
        __syncwarp();
      }
    }
  }
  __syncthreads();
}

__device__ Box load_box(const float* boxes, uint32_t index) {
  const float* const source = boxes + size_t{index} * 4;
  if (reinterpret_cast<uintptr_t>(boxes) % sizeof(Box) == 0) return *reinterpret_cast<const Box*>(source);
  return {source[0], source[1], source[2], source[3]};
}

__device__ bool tested(const Box& kept, const Box& other, float pixel, float threshold) {
  return !apart(kept, other, pixel) && suppresses(kept, area(kept, pixel), other, area(other, pixel), pixel, threshold);
}

// Which of the chunk's candidates are kept, 32 at a time, by one warp. A candidate is out once a better one that
// overlaps it is kept, and kept once all of those are out; each pass of the inner loop settles at least the best one
// that is open, usually nearly all.
__device__ void resolve(Shared& shared) {
  const int lane = threadIdx.x;
  uint32_t kept[kWords];
#pragma unroll
  for (int word = 0; word < kWords; ++word) {
    const int candidate = word * 32 + lane;
    bool is_open = shared.alive[word] >> lane & 1u;
#pragma unroll
    for (int other = 0; other < word; ++other) is_open &= !(shared.suppressors[other][candidate] & kept[other]);
    const uint32_t rivals = shared.suppressors[word][candidate];
    kept[word] = 0;
    for (uint32_t open = __ballot_sync(kAll, is_open); open != 0; open = __ballot_sync(kAll, is_open)) {
      const bool wins = is_open && !(rivals & open);
      kept[word] |= __ballot_sync(kAll, wins);
      is_open = is_open && !wins && !(rivals & kept[word]);
    }
    if (lane == 0) shared.kept[word] = kept[word];
  }
}

// Candidates keys[0..count) against the `kept` boxes before them and each other; what survives is appended to the row's
// outputs. Returns their new number.
template <bool kByClass>
__device__ int suppress_chunk(Shared& shared, const Row& row, const Params& params, const uint64_t* keys, int count,
                              int kept) {
  const int candidate = threadIdx.x % kChunk, part = threadIdx.x / kChunk;
  const int word = candidate / 32, lane = candidate % 32;
  const float pixel = params.inclusive ? 1.0f : 0.0f;
  const bool exists = candidate < count;
  if (part == 0) {
    if (exists) shared.boxes[candidate] = load_box(row.boxes, index_of(keys[candidate]));
    if (kByClass && exists) shared.classes[candidate] = row.classes[index_of(keys[candidate])];
    const unsigned valid = __ballot_sync(kAll, exists);
    if (lane == 0) shared.alive[word] = valid;
  }
  __syncthreads();

  const Box own = shared.boxes[candidate];
  const int64_t own_class = kByClass ? shared.classes[candidate] : 0;
  bool hit = !exists;
  for (int first = part; first < kept && !hit; first += kParts * kInFlight) {
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int other = first + i * kParts;
      if (other >= kept || (kByClass && row.kept_classes[other] != own_class)) continue;
      hit |= tested(row.kept_boxes[other], own, pixel, params.iou_threshold);
    }
  }
  const unsigned hits = __ballot_sync(kAll, hit);
  if (lane == 0 && hits != 0) atomicAnd(&shared.alive[word], ~hits);
  __syncthreads();

  for (int other_word = part; other_word <= word; other_word += kParts) {
    uint32_t overlapping = 0;
    for (uint32_t left = shared.alive[other_word]; left != 0; left &= left - 1) {
      const int bit = __ffs(left) - 1, other = other_word * 32 + bit;
      if (kByClass && shared.classes[other] != own_class) continue;
      if (tested(shared.boxes[other], own, pixel, params.iou_threshold)) overlapping |= 1u << bit;
    }
    if (other_word == word) overlapping &= (1u << lane) - 1;  // only better ones
    shared.suppressors[other_word][candidate] = overlapping;
  }
  __syncthreads();
  if (threadIdx.x < 32) resolve(shared);
  __syncthreads();

  int rank = kept, total = kept;
  for (int i = 0; i < kWords; ++i) {
    total += __popc(shared.kept[i]);
    if (i < word) rank += __popc(shared.kept[i]);
  }
  rank += __popc(shared.kept[word] & ((1u << lane) - 1));
  if (part == 0 && (shared.kept[word] >> lane & 1u) && rank < params.max_output) {
    row.indices[rank] = index_of(keys[candidate]);
    row.kept_boxes[rank] = own;
    if (kByClass) row.kept_classes[rank] = own_class;
  }
  __syncthreads();
  return min(total, params.max_output);
}

int most_kept(const Params& params) {
  return params.max_output < params.num_boxes ? params.max_output : params.num_boxes;
}

template <bool kByClass>
__global__ void __launch_bounds__(kThreads, 1) nms_kernel(Params params, Box* kept_boxes, int64_t* kept_classes) {
  __shared__ Shared shared;
  const int64_t start = int64_t{blockIdx.x} * params.num_boxes;
  const int64_t kept_start = int64_t{blockIdx.x} * min(params.max_output, params.num_boxes);
  const Row row{params.boxes + start * 4,
                params.scores + start,
                kByClass ? params.classes + start : nullptr,
                kept_boxes + kept_start,
                kByClass ? kept_classes + kept_start : nullptr,
                params.indices + int64_t{blockIdx.x} * params.max_output};
  int kept = 0;
  for (uint64_t high = ~uint64_t{0}, low; high != 0 && kept < params.max_output; high = low) {
    low = params.num_boxes <= kCapacity ? 0 : find_round(shared, row, params.num_boxes, params.score_threshold, high);
    const int found = collect(shared, row, params.num_boxes, params.score_threshold, low, high);
    sort_keys(shared, found);
    for (int first = 0; first < found && kept < params.max_output; first += kChunk) {
      kept = suppress_chunk<kByClass>(shared, row, params, shared.keys + first, min(found - first, kChunk), kept);
    }
  }
  for (int i = kept + threadIdx.x; i < params.max_output; i += kThreads) row.indices[i] = 0;
  if (threadIdx.x == 0) params.counts[blockIdx.x] = kept;
}

size_t kept_boxes_size(const Params& params) {
  return aligned(sizeof(Box) * size_t(params.batch) * size_t(most_kept(params)));
}

}  // namespace

// The same with and without classes, because a caller may ask before it has any pointer.
size_t workspace_size(const Params& params) {
  return kept_boxes_size(params) + aligned(sizeof(int64_t) * size_t(params.batch) * size_t(most_kept(params)));
}

int launch(const Params& params, void* workspace, size_t bytes, CUstream_st* stream) {
  if (!is_supported(params) || bytes < workspace_size(params)) return cudaErrorInvalidValue;
  if (!has_aligned_pointers(params) || !is_aligned(workspace, sizeof(Box))) return cudaErrorMisalignedAddress;
  if (params.batch == 0) return cudaSuccess;
  Box* const boxes = static_cast<Box*>(workspace);
  int64_t* const classes = reinterpret_cast<int64_t*>(static_cast<char*>(workspace) + kept_boxes_size(params));
  return launch_kernel(params.classes ? nms_kernel<true> : nms_kernel<false>, dim3(params.batch), dim3(kThreads), 0,
                       stream, params, boxes, classes);
}

}  // namespace upsnet::nms

UPSNET_EXPORT_CUDA(nms)
