// Beside the steps on a GPU (launch.cu): all of them include this file.
// The device memory that the kernels hand to each other.
#pragma once

#include "common/cuda.h"
#include "common/warp.cuh"
#include "panoptic_fusion/kernel.cuh"

namespace upsnet::panoptic_fusion {

constexpr int kLabels = 256;

// What is known of a label's pixels: area, and a box as distances from the far and the near edges of the map, so that
// all five grow from zero.
enum Extent { kArea, kFromRight, kFromBottom, kToRight, kToBottom, kExtents };

// The words of the map that a mask has.
struct Span {
  int first_word, across, first_y, down;  // across, down: one less than their number

  __device__ bool has(int word, int y) const {
    return (unsigned(word - first_word) <= unsigned(across)) & (unsigned(y - first_y) <= unsigned(down));
  }
};
__device__ inline Span nowhere() { return {1 << 30, 0, 0, 0}; }

// A detection among those of its image, sorted by class, then by score. One that is dropped is nowhere.
struct Member {
  int detection, category;
  Span span;
};

// How far the rounds of an image are.
struct Progress {
  int finished;       // rounds; kSettled when nothing is open any more
  int unused[31];     // those that wait look at another cache line than those that work count in
  int done[kRounds];  // tiles of each round
};

// What the blocks of prune draw from.
struct Queue {
  int tickets, settled_images;
};

struct Overlap {
  int least, most;  // pixels of a mask on those that are accepted before it; on those that are, or may yet be
};

struct Workspace {
  // Cleared by the first launch.
  int* votes;          // [batch, detections, num_stuff] pixels of the detection that are this stuff, semantically
  int* extents;        // [batch, kExtents, kLabels]
  Overlap* overlaps;   // [batch, kRounds, detections], by place among the members
  Progress* progress;  // [batch]
  Queue* queue;
  size_t cleared;  // bytes from votes on
  // Written before they are read.
  uint8_t* accepted;  // [batch, detections]
  uint8_t* states;    // [batch, kRounds, detections] after each round, by place
  Member* members;    // [batch, detections]
  unsigned* masks;    // [batch, detections, 4 height, words]: one bit a pixel, of which only words of the box count
  size_t size;
};

inline Workspace workspace_of(const Params& p, void* memory) {
  auto* base = static_cast<unsigned char*>(memory);
  Workspace workspace{};
  size_t used = 0;
  const auto cut = [&](auto*& slice, size_t count) {
    slice = reinterpret_cast<std::remove_reference_t<decltype(slice)>>(base + used);
    used = aligned(used + count * sizeof *slice);
  };
  const size_t batch = p.batch, rows = batch * p.detections;
  cut(workspace.votes, rows * p.num_stuff);
  cut(workspace.extents, batch * kExtents * kLabels);
  cut(workspace.overlaps, kRounds * rows);
  cut(workspace.progress, batch);
  cut(workspace.queue, 1);
  workspace.cleared = used;
  cut(workspace.accepted, rows);
  cut(workspace.states, kRounds * rows);
  cut(workspace.members, rows);
  cut(workspace.masks, rows * kScale * p.height * words_of(p));
  workspace.size = used;
  return workspace;
}

template <bool kHeuristic>
__device__ Window window_at(const float* box) {
  return kHeuristic ? pasted_window_of(box) : window_of(box);
}

// The rank of this thread among those of the block (kLabels threads) that are `present`, and how many these are. The
// whole block calls it, once.
__device__ inline int rank_of(bool present, int& total) {
  __shared__ int counts[kLabels / 32];
  const unsigned votes = __ballot_sync(~0u, present);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (lane == 0) counts[warp] = __popc(votes);
  __syncthreads();
  int rank = __popc(votes & ((1u << lane) - 1));
  total = 0;
  for (int w = 0; w < kLabels / 32; ++w) {
    if (w < warp) rank += counts[w];
    total += counts[w];
  }
  return rank;
}

}  // namespace upsnet::panoptic_fusion
