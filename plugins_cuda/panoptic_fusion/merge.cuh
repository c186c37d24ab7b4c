// Step 3 of 3 on a GPU (launch.cu): after label.cuh. It writes what the operator returns.
// From labels to segments: the majority rule (nobody voted where the merge is heuristic), the area limit, the rows of
// the table, the values of the map.
#pragma once

#include "panoptic_fusion/workspace.cuh"

namespace upsnet::panoptic_fusion {

// targets[S + d]: the stuff that outvotes detection d, else its own label. A warp for each detection.
__device__ inline void find_targets(const Params& p, const Workspace& workspace, int image, int* targets) {
  const int lane = threadIdx.x % 32;
  for (int d = threadIdx.x / 32; d < p.detections; d += kLabels / 32) {
    const int* votes = workspace.votes + (size_t(image) * p.detections + d) * p.num_stuff;
    int most = -1, stuff = kNone;
    for (int s = lane; s < p.num_stuff; s += 32) {
      if (votes[s] > most) most = votes[s], stuff = s;
    }
    const int winner = warp_max(~0u, most);
    stuff = warp_min(~0u, most == winner ? stuff : kNone);
    const int label = p.num_stuff + d;
    const int area = workspace.extents[(size_t(image) * kExtents + kArea) * kLabels + label];
    if (lane == 0) targets[label] = is_outvoted(winner, area) ? stuff : label;
  }
}

// One block of kLabels threads for each image; a thread is a label.
__global__ void __launch_bounds__(kLabels) merge(Params p, Workspace workspace) {
  __shared__ int targets[kLabels], numbers[kLabels], merged[kExtents][kLabels];
  const int image = blockIdx.x, label = threadIdx.x, rows = p.num_stuff + p.detections;
  const int* extents = workspace.extents + size_t(image) * kExtents * kLabels;
  for (int i = 0; i < kExtents; ++i) merged[i][label] = 0;
  if (label < p.num_stuff || label >= rows) targets[label] = label;
  find_targets(p, workspace, image, targets);
  __syncthreads();
  const int target = targets[label];
  if (extents[kArea * kLabels + label] > 0) {
    atomicAdd(&merged[kArea][target], extents[kArea * kLabels + label]);
    for (int i = kFromRight; i < kExtents; ++i) atomicMax(&merged[i][target], extents[i * kLabels + label]);
  }
  __syncthreads();

  const float area = float(merged[kArea][label]);
  const bool too_small = label < p.num_stuff && area < network_area(p.stuff_area_limit, p.scales[image]);
  const bool present = label < rows && area > 0.0f && !too_small;
  int total = 0;
  const int place = rank_of(present, total);
  numbers[label] = present ? 1 + place : 0;
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
  __syncthreads();
  workspace.numbers[size_t(image) * kLabels + label] = uint8_t(numbers[target]);
}

// Labels become panoptic values in place, sixteen pixels a thread. grid: (pixels by 16 * blockDim, 1, batch).
__global__ void __launch_bounds__(kLabels) number_pixels(Params p, Workspace workspace) {
  __shared__ uint8_t numbers[kLabels];
  numbers[threadIdx.x] = workspace.numbers[size_t(blockIdx.z) * kLabels + threadIdx.x];
  __syncthreads();
  const size_t groups = size_t(p.height) * p.width, i = size_t(blockIdx.x) * kLabels + threadIdx.x;
  if (i >= groups) return;
  uint4* at = reinterpret_cast<uint4*>(p.panoptic) + blockIdx.z * groups + i;
  uint4 pixels = *at;
  for (unsigned* word : {&pixels.x, &pixels.y, &pixels.z, &pixels.w}) {
    const unsigned labels = *word;
    *word = numbers[labels & 0xffu] | numbers[labels >> 8 & 0xffu] << 8 | numbers[labels >> 16 & 0xffu] << 16 |
            unsigned(numbers[labels >> 24]) << 24;
  }
  *at = pixels;
}

}  // namespace upsnet::panoptic_fusion
