// Step 3 of 3 on a GPU (launch.cu): after label.cuh. It writes what the operator returns.
// From labels to segments: the majority rule (nobody voted where the merge is heuristic), the area limit, the rows of
// the table, the values of the map.
#pragma once

#include "panoptic_fusion/workspace.cuh"

namespace upsnet::panoptic_fusion {

constexpr int kMostBlocks = 512;  // for each image

// targets[S + d]: the stuff that outvotes detection d, where one does. A warp for each detection; areas: of labels.
__device__ inline void find_targets(const Params& p, const Workspace& workspace, int image, const int* areas,
                                    int* targets) {
  const int lane = threadIdx.x % 32;
#pragma unroll 2
  for (int d = threadIdx.x / 32; d < p.detections; d += kLabels / 32) {
    const int label = p.num_stuff + d, area = areas[label];
    if (area == 0) continue;
    const int* votes = workspace.votes + (size_t(image) * p.detections + d) * p.num_stuff;
    int most = -1, stuff = kNone;
    for (int s = lane; s < p.num_stuff; s += 32) {
      if (votes[s] > most) most = votes[s], stuff = s;
    }
    const int winner = warp_max(~0u, most);
    stuff = warp_min(~0u, most == winner ? stuff : kNone);
    if (lane == 0 && is_outvoted(winner, area)) targets[label] = stuff;
  }
}

// numbers: the panoptic value of every label. The table too, where `writes`. Every block has to know the numbers, and
// makes them for itself: a launch that makes them once would take longer. The whole block calls it; a thread is a
// label.
__device__ inline void number_labels(const Params& p, const Workspace& workspace, int image, bool writes,
                                     uint8_t* numbers) {
  __shared__ int areas[kLabels], targets[kLabels], merged[kExtents][kLabels];
  __shared__ uint8_t places[kLabels];
  const int label = threadIdx.x, rows = p.num_stuff + p.detections;
  int extents[kExtents];
  for (int i = 0; i < kExtents; ++i) {
    extents[i] = workspace.extents[(size_t(image) * kExtents + i) * kLabels + label];
    merged[i][label] = 0;
  }
  areas[label] = extents[kArea];
  targets[label] = label;
  __syncthreads();
  if (!p.heuristic) find_targets(p, workspace, image, areas, targets);
  __syncthreads();
  const int target = targets[label];
  if (extents[kArea] > 0) {
    atomicAdd(&merged[kArea][target], extents[kArea]);
    for (int i = kFromRight; i < kExtents; ++i) atomicMax(&merged[i][target], extents[i]);
  }
  __syncthreads();

  const float area = float(merged[kArea][label]);
  const bool too_small = label < p.num_stuff && area < network_area(p.stuff_area_limit, p.scales[image]);
  const bool present = label < rows && area > 0.0f && !too_small;
  int total = 0;
  const int place = rank_of(present, total);
  places[label] = uint8_t(present ? 1 + place : 0);
  __syncthreads();
  numbers[label] = places[target];
  if (!writes) return;
  float* table = p.segments + size_t(image) * rows * 7;
  if (present) {
    const size_t d = size_t(image) * p.detections + (label - p.num_stuff);
    const bool stuff = label < p.num_stuff;
    float* row = table + place * 7;
    row[0] = stuff ? float(label) : float(p.num_stuff + int(p.classes[d]));
    row[1] = stuff ? 1.0f : p.scores[d];
    row[2] = area;
    row[3] = float(kScale * p.width - merged[kFromRight][label]);
    row[4] = float(kScale * p.height - merged[kFromBottom][label]);
    row[5] = float(merged[kToRight][label]);
    row[6] = float(merged[kToBottom][label]);
  }
  for (int i = total * 7 + label; i < rows * 7; i += kLabels) table[i] = 0.0f;
  if (label == 0) p.segment_count[image] = total;
}

// The table, and labels become panoptic values in place, sixteen pixels a thread at a time. grid: (up to kMostBlocks,
// 1, batch).
__global__ void __launch_bounds__(kLabels) merge(Params p, Workspace workspace) {
  __shared__ uint8_t numbers[kLabels];
  number_labels(p, workspace, blockIdx.z, blockIdx.x == 0, numbers);
  __syncthreads();
  const size_t groups = size_t(p.height) * p.width;
  uint4* map = reinterpret_cast<uint4*>(p.panoptic) + blockIdx.z * groups;
  for (size_t i = size_t(blockIdx.x) * kLabels + threadIdx.x; i < groups; i += size_t(gridDim.x) * kLabels) {
    uint4 pixels = map[i];
    for (unsigned* word : {&pixels.x, &pixels.y, &pixels.z, &pixels.w}) {
      const unsigned labels = *word;
      *word = numbers[labels & 0xffu] | numbers[labels >> 8 & 0xffu] << 8 | numbers[labels >> 16 & 0xffu] << 16 |
              unsigned(numbers[labels >> 24]) << 24;
    }
    map[i] = pixels;
  }
}

}  // namespace upsnet::panoptic_fusion
