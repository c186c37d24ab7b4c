// Step 1 of 3 on a GPU (launch.cu), its second half: after rasterize.cuh, before channels.cuh and label.cuh.
// Which detections stay: greedy pruning, class by class or (heuristic) of all together.
//
// Whether a detection is accepted depends on those before it: a chain of up to 254 steps over whole masks. Here instead
// every thread takes one word of the map through all masks in order, with two unions of those of the class so far: of
// the masks that are accepted for sure, and of these and the open ones. What a mask has on the first is the least that
// it can have on the accepted ones before it, and what it has on the second the most. Too much of the least: rejected.
// Little enough of the most: accepted. Whatever the masks, a round settles the first open one of each class at least,
// for which both are the same; crowds take three to six rounds, and most of their masks are settled in the first two.
// What is open after kRounds (a chain of more masks than that, each of which decides about the next) the last block
// settles one after the other.
//
// All rounds are one launch. Blocks draw tickets, one after the other; those of a round wait for the round before,
// hence only for lower tickets. Who holds these is running, and waits for nobody above: so nobody waits forever,
// however many blocks the device has room for.
#pragma once

#include "panoptic_fusion/workspace.cuh"

namespace upsnet::panoptic_fusion {

static_assert(kWordsOfTile * kRowsOfTile == kLabels, "a word for each thread of a block");
constexpr int kBatch = 16;  // masks whose words are on their way together
constexpr int kSettled = 1 << 30;

enum State : uint8_t { kRejected, kOpen, kAccepted };

// A mask near the block's words.
struct alignas(16) Near {
  Span span;
  const unsigned* bits;     // of the plane's first word
  unsigned accepted, kept;  // all bits, or none; kept: what the one before it left is of the same class
};

// What of the workspace is of one image.
struct Image {
  Member* members;
  Overlap* overlaps;  // [kRounds, detections]
  uint8_t *states, *accepted;
  const unsigned* masks;
  Progress* progress;
  size_t plane;  // words of a mask
  int words;     // of a row
};

__device__ inline Image image_of(const Params& p, const Workspace& workspace, int image) {
  const int words = (kScale * p.width + 31) / 32;
  const size_t plane = size_t(kScale) * p.height * words, row = size_t(image) * p.detections;
  return {workspace.members + row,
          workspace.overlaps + kRounds * row,
          workspace.states + kRounds * row,
          workspace.accepted + row,
          workspace.masks + row * plane,
          workspace.progress + image,
          plane,
          words};
}

// One round, on one tile: adds to the overlaps of the masks that are open. Round 0, before which nothing is accepted,
// has their areas for the least overlap. The whole block calls it.
__device__ inline void count_overlaps(const Params& p, const Image& image, int round, int first_word, int first_y) {
  __shared__ Near list[kLabels];       // in order; then some without words
  __shared__ int categories[kLabels];  // of these
  __shared__ int sums[kLabels];        // the least, and 65536 times the most: a tile has 8192 pixels
  const int t = threadIdx.x, lane = t % 32;
  Member member{0, 0, nowhere()};
  int state = kRejected;
  if (t < p.detections) {
    member = image.members[t];
    state = round == 0 ? int(kOpen) : image.states[(round - 1) * p.detections + t];
  }
  const Span& span = member.span;
  const bool near = state != kRejected && span.first_word < first_word + kWordsOfTile &&
                    span.first_word + span.across >= first_word && span.first_y < first_y + kRowsOfTile &&
                    span.first_y + span.down >= first_y;
  if (!__syncthreads_or(near && state == kOpen)) return;
  sums[t] = 0;
  list[t] = {nowhere(), nullptr, 0u, 0u};
  int count = 0;
  const int place = rank_of(near, count);  // a barrier
  if (near) {
    list[place] = {span, image.masks + member.detection * image.plane, state == kAccepted ? ~0u : 0u, 0u};
    categories[place] = member.category;
  }
  __syncthreads();
  if (t > 0 && t < count && categories[t] == categories[t - 1]) list[t].kept = ~0u;
  __syncthreads();

  const int word = first_word + t % kWordsOfTile, y = first_y + t / kWordsOfTile, i = y * image.words + word;
  const unsigned everything = round == 0 ? ~0u : 0u;
  unsigned accepted = everything, possible = 0;
  for (int start = 0; start < count; start += kBatch) {  // kLabels is a multiple of kBatch
    unsigned mask[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) mask[k] = list[start + k].span.has(word, y) ? list[start + k].bits[i] : 0;
    int own = 0;  // lane k: of mask k
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const unsigned kept = list[start + k].kept;
      accepted = (accepted & kept) | everything, possible &= kept;
      const int overlap = warp_add(~0u, __popc(mask[k] & accepted) + (__popc(mask[k] & possible) << 16));
      if (lane == k) own = overlap;
      accepted |= mask[k] & list[start + k].accepted, possible |= mask[k];
    }
    if (own > 0) atomicAdd(&sums[start + lane], own);
  }
  __syncthreads();
  if (!near || state != kOpen || sums[place] == 0) return;
  Overlap& overlap = image.overlaps[round * p.detections + t];
  if (sums[place] & 0xffff) atomicAdd(&overlap.least, sums[place] & 0xffff);
  if (sums[place] >> 16) atomicAdd(&overlap.most, sums[place] >> 16);
}

// Of the member that is the thread's own, after a round.
__device__ inline State decide(const Params& p, const Image& image, int round) {
  const int t = threadIdx.x;
  if (t >= p.detections) return kRejected;
  const State before = round == 0 ? kOpen : State(image.states[(round - 1) * p.detections + t]);
  if (before != kOpen) return before;
  const int area = image.overlaps[t].least;
  const Overlap overlap = image.overlaps[round * p.detections + t];
  if (is_accepted(overlap.most, area, p.mask_overlap_threshold)) return kAccepted;
  return is_accepted(round == 0 ? 0 : overlap.least, area, p.mask_overlap_threshold) ? kOpen : kRejected;
}

// Settles those that are open, in order. own: the state of the thread's member. The whole block calls it.
__device__ inline State settle_in_turn(const Params& p, const Image& image, State own) {
  __shared__ State states[kLabels];
  __shared__ int total;
  const int t = threadIdx.x;
  states[t] = own;
  for (int place = 0; place < p.detections; ++place) {
    if (t == 0) total = 0;
    __syncthreads();
    if (states[place] != kOpen) continue;
    const Member member = image.members[place];
    const int across = member.span.across + 1, count = across * (member.span.down + 1);
    int overlap = 0;
    for (int n = t; n < count; n += kLabels) {
      const int word = member.span.first_word + n % across, y = member.span.first_y + n / across;
      const size_t i = size_t(y) * image.words + word;
      unsigned taken = 0;
      for (int other = place - 1; other >= 0; --other) {
        const Member& before = image.members[other];
        if (before.category != member.category) break;
        if (states[other] == kAccepted && before.span.has(word, y)) {
          taken |= image.masks[before.detection * image.plane + i];
        }
      }
      overlap += __popc(taken & image.masks[member.detection * image.plane + i]);
    }
    overlap = warp_add(~0u, overlap);
    if (t % 32 == 0) atomicAdd(&total, overlap);
    __syncthreads();
    const bool accepted = is_accepted(total, image.overlaps[place].least, p.mask_overlap_threshold);
    if (t == 0) states[place] = accepted ? kAccepted : kRejected;
    __syncthreads();
  }
  return states[t];
}

// Waits until all tiles of the rounds before are done. Returns false where nothing is open any more. The whole block
// calls it.
__device__ inline bool wait_for(const Progress* progress, int round) {
  if (round == 0) return true;
  int finished = 0;
  if (threadIdx.x == 0) {
    const volatile int* now = &progress->finished;
    while ((finished = *now) < round) __nanosleep(64);  // not so often that those who work have to queue
    __threadfence();
  }
  return !__syncthreads_or(finished == kSettled);
}

// Whether this tile is the last one of its round. All that the others wrote is seen then. The whole block calls it.
__device__ inline bool is_last(int* done, int tiles) {
  __syncthreads();
  bool last = false;
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicAdd(done, 1) == tiles - 1;
    __threadfence();
  }
  return __syncthreads_or(last);
}

// One round of one tile. The whole block calls it.
__device__ inline void prune_tile(const Params& p, const Image& image, int round, int tile, int across, int tiles,
                                  int* settled_images) {
  if (!wait_for(image.progress, round)) return;
  count_overlaps(p, image, round, tile % across * kWordsOfTile, tile / across * kRowsOfTile);
  if (!is_last(&image.progress->done[round], tiles)) return;

  const int t = threadIdx.x;
  State state = decide(p, image, round);
  bool settled = !__syncthreads_or(state == kOpen);
  if (!settled && round == kRounds - 1) {
    state = settle_in_turn(p, image, state);
    settled = true;
  }
  if (t < p.detections) {
    if (settled)
      image.accepted[image.members[t].detection] = state == kAccepted;
    else
      image.states[round * p.detections + t] = state;
  }
  __syncthreads();
  if (t == 0) {
    __threadfence();
    atomicExch(&image.progress->finished, settled ? kSettled : round + 1);
    if (settled) atomicAdd(settled_images, 1);
  }
}

// accepted, of all detections. A ticket is a tile of an image in a round; the rounds follow each other. grid: any;
// tiles: of an image.
__global__ void __launch_bounds__(kLabels) prune(Params p, Workspace workspace, int across, int tiles) {
  __shared__ int drawn;
  const int all = kRounds * p.batch * tiles;
  const volatile int* settled_images = &workspace.queue->settled_images;
  for (;;) {
    if (threadIdx.x == 0) drawn = *settled_images == p.batch ? all : atomicAdd(&workspace.queue->tickets, 1);
    __syncthreads();
    const int ticket = drawn, image = ticket / tiles % p.batch, round = ticket / tiles / p.batch;
    __syncthreads();
    if (ticket >= all) return;
    prune_tile(p, image_of(p, workspace, image), round, ticket % tiles, across, tiles,
               &workspace.queue->settled_images);
  }
}

}  // namespace upsnet::panoptic_fusion
