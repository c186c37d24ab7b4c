// A round: the best candidates that are left of a row, at most one for each thread of the block, in order.
//
//   1. find_span: the greatest and the least score that is left.
//   2. open_round: a histogram over the span, in bins of equal width. The round is made of the highest bins that have
//      room, each of which has few keys. Where not even the highest one with keys does, its span is taken instead, so
//      that equal scores are told apart by their index.
//   3. fill_round: each key goes to its bin's place among the others, and a few comparisons find its rank in the bin.
// That sorts in six barriers.
#pragma once

#include "common/cuda.h"
#include "common/warp.cuh"
#include "nms/kernel.cuh"

namespace upsnet::nms {
namespace {

constexpr int kThreads = 1024, kWarps = kThreads / 32;
constexpr int kCapacity = kThreads;  // candidates of a round
constexpr int kDigitBits = 11, kBins = 1 << kDigitBits;
constexpr int kCrowd = 256;   // more keys in a bin take longer to rank than to split
constexpr int kInFlight = 8;  // loads that a thread has under way at once
constexpr int kChunk = 128, kParts = kThreads / kChunk, kWords = kChunk / 32;  // suppress.cuh
constexpr int kShare = kChunk / kParts;  // tests of a thread within its chunk, a bit each
constexpr int kTags = 128, kChains = kTags * kParts;
constexpr uint32_t kEnd = 0xffff;  // of a chain
constexpr unsigned kAll = 0xffffffffu;
static_assert(kBins == 2 * kThreads && kWarps == 32 && kShare == 16 && kChains == kThreads && kCapacity <= kEnd);

struct Shared {
  union {
    uint64_t keys[kCapacity];  // of the round, by bin
    struct {                   // of the round's candidates, in order
      uint32_t indices[kCapacity], tags[kCapacity];
    } sorted;
  };
  union {
    uint32_t bins[kBins];  // numbers of keys, then where a bin's keys begin, then where they end
    struct {
      uint32_t heads[kChains];  // the round's kept candidates, in chains by tag and part
      uint16_t next[kCapacity];
      uint16_t suppressors[kParts][kChunk];  // bit j of [p][i]: candidate 16 p + j of the chunk is better, overlaps i
    } tests;
  };
  Box boxes[kCapacity];  // in order, as `sorted`
  int64_t classes[kCapacity];
  uint32_t kept[kWords], dead[kWords];  // bits of the chunk; dead: suppressed by a box kept before
  uint64_t warp_keys[2][kWarps];
  int warp_totals[kWarps];
  struct {
    int digit, above;  // the highest bin that the round has no room for, -1: none; number of keys in higher ones
  } choice;
};

struct Row {
  const float* boxes;
  const int64_t* classes;
  Box* kept_boxes;
  int64_t* kept_classes;
  int64_t* indices;
};

// Where the keys of a row come from: its shortlist, or all of its scores.
struct Source {
  const uint64_t* list;  // null: the scores
  const float* scores;
  int count;
  float threshold;
};

struct Span {
  uint64_t low, high;  // low <= key <= high; low > high: empty
};

struct Greatest {
  uint64_t one, other;
};

struct Round {
  uint64_t start;            // of the lowest bin
  int shift, lowest, count;  // a bin's width as a power of two, the round's lowest bin, its number of keys

  __device__ uint64_t low() const { return start + (uint64_t(lowest) << shift); }
};

// visit(value, index) for each of the values, many of which are loaded at once.
template <typename Value, typename Visit>
__device__ __forceinline__ void visit_values(const Value* values, int count, Visit visit) {
#pragma unroll 1
  for (int first = threadIdx.x; first < count; first += kThreads * kInFlight) {
    Value loaded[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) loaded[i] = values[min(first + i * kThreads, count - 1)];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int index = first + i * kThreads;
      if (index < count) visit(loaded[i], index);
    }
  }
}

// visit(key); 0 is none.
template <typename Visit>
__device__ void visit_keys(const Source& source, Visit visit) {
  if (source.list) return visit_values(source.list, source.count, [&](uint64_t key, int) { visit(key); });
  visit_values(source.scores, source.count,
               [&](float score, int index) { visit(key_of(score, source.threshold, index)); });
}

__device__ uint64_t highest(uint64_t value) {
  const int high = warp_max(kAll, int(uint32_t(value >> 32) ^ 0x80000000u));
  const bool is_high = int(uint32_t(value >> 32) ^ 0x80000000u) == high;
  const int low = warp_max(kAll, int((is_high ? uint32_t(value) : 0u) ^ 0x80000000u));
  return uint64_t{uint32_t(high) ^ 0x80000000u} << 32 | (uint32_t(low) ^ 0x80000000u);
}

// The greatest of all threads' values, of each of the two.
__device__ Greatest greatest(Shared& shared, uint64_t one, uint64_t other) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  one = highest(one);
  other = highest(other);
  if (lane == 0) {
    shared.warp_keys[0][warp] = one;
    shared.warp_keys[1][warp] = other;
  }
  __syncthreads();
  const Greatest found{highest(shared.warp_keys[0][lane]), highest(shared.warp_keys[1][lane])};
  __syncthreads();
  return found;
}

// Of the keys in bounds; as tight as scores tell.
__device__ Span find_span(Shared& shared, const Source& source, Span bounds) {
  if (bounds.low > bounds.high) return bounds;
  uint32_t low = ~0u, high = 0;
  visit_keys(source, [&](uint64_t key) {
    if (key - bounds.low > bounds.high - bounds.low) return;
    low = min(low, uint32_t(key >> 32));
    high = max(high, uint32_t(key >> 32));
  });
  const auto [highest, not_lowest] = greatest(shared, high, uint32_t(~low));
  return {max(bounds.low, uint64_t{uint32_t(~not_lowest)} << 32), min(bounds.high, highest << 32 | 0xffffffffu)};
}

// shared.bins become the places where their keys begin, the highest bin's first.
__device__ void place_bins(Shared& shared) {
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int digit = kBins - 1 - 2 * thread;  // each thread has this bin and the one below
  const auto room = [](int count) { return count > kCrowd ? kCapacity + 1 : count; };  // for a crowd there is none
  const int upper = room(shared.bins[digit]), both = upper + room(shared.bins[digit - 1]);
  int sum = both;  // of this thread and those before, in the warp
  for (int delta = 1; delta < 32; delta *= 2) {
    const int other = __shfl_up_sync(kAll, sum, delta);
    if (lane >= delta) sum += other;
  }
  if (lane == 31) shared.warp_totals[warp] = sum;
  __syncthreads();
  const int before = warp_add(kAll, lane < warp ? shared.warp_totals[lane] : 0) + sum - both;
  shared.bins[digit] = before;
  shared.bins[digit - 1] = before + upper;
  if (before <= kCapacity && before + both > kCapacity) {
    const bool first = before + upper > kCapacity;
    shared.choice = {first ? digit : digit - 1, first ? before : before + upper};
  } else if (thread == kThreads - 1 && before + both <= kCapacity) {
    shared.choice = {-1, before + both};
  }
  __syncthreads();
}

// The round of the highest keys in the span, which is not empty.
__device__ Round open_round(Shared& shared, const Source& source, Span span) {
  for (;;) {
    const int shift = max(64 - kDigitBits - __clzll(span.high - span.low), 0);
    shared.bins[threadIdx.x] = shared.bins[threadIdx.x + kThreads] = 0;
    __syncthreads();
    visit_keys(source, [&](uint64_t key) {
      if (key - span.low <= span.high - span.low) atomicAdd(&shared.bins[(key - span.low) >> shift], 1u);
    });
    __syncthreads();
    place_bins(shared);
    const int digit = shared.choice.digit, above = shared.choice.above;
    if (above > 0) return {span.low, shift, digit + 1, above};
    span.low += uint64_t(digit) << shift;
    span.high = min(span.high, span.low + (uint64_t{1} << shift) - 1);
  }
}

__device__ Box load_box(const float* boxes, uint32_t index) {
  const float* const source = boxes + size_t{index} * 4;
  if (reinterpret_cast<uintptr_t>(boxes) % sizeof(Box) == 0) return *reinterpret_cast<const Box*>(source);
  return {source[0], source[1], source[2], source[3]};
}

// Equal classes have equal tags, and other ones rarely; a comparison of 64 bits takes twice as long.
__device__ uint32_t tag_of(int64_t value) { return uint32_t(value) ^ uint32_t(uint64_t(value) >> 32); }

// The round's candidates, sorted, into shared memory. `high`: of the span that the round was opened for.
template <bool kByClass>
__device__ void fill_round(Shared& shared, const Source& source, const Row& row, const Round& round, uint64_t high) {
  const int thread = threadIdx.x;
  const uint64_t low = round.low();
  visit_keys(source, [&](uint64_t key) {
    if (key - low > high - low) return;
    shared.keys[atomicAdd(&shared.bins[(key - round.start) >> round.shift], 1u)] = key;
  });
  __syncthreads();
  const bool exists = thread < round.count;
  uint64_t key = 0;
  Box box{};
  int64_t own_class = 0;
  int rank = 0;
  if (exists) {
    key = shared.keys[thread];
    box = load_box(row.boxes, index_of(key));
    if (kByClass) own_class = row.classes[index_of(key)];
    const int digit = int((key - round.start) >> round.shift);
    const int begin = digit + 1 < kBins ? shared.bins[digit + 1] : 0, end = shared.bins[digit];
    rank = begin;
#pragma unroll 4
    for (int i = begin; i < end; ++i) rank += shared.keys[i] > key;
  }
  __syncthreads();  // keys and bins have been read
  if (exists) {
    shared.boxes[rank] = box;
    shared.classes[rank] = own_class;
    shared.sorted.indices[rank] = index_of(key);
    shared.sorted.tags[rank] = tag_of(own_class);
  }
  shared.tests.heads[thread] = kEnd;
  if (thread < kWords) shared.dead[thread] = 0;
  __syncthreads();
}

}  // namespace
}  // namespace upsnet::nms
