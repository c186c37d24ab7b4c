// Step 2 of 3 on a GPU (launch.cu), its first half: label.cuh continues with the instances.
// All semantic channels over the pixels of a block: best stuff and best thing.
//
// A thread owns 4 x 2 pixels that share the four corners of one cell, and runs over all channels: per pixel and channel
// two operations to interpolate and one (things) or three (stuff) to compare. A block owns 32 cells x 4 such rows; it
// stages its 33 x 3 corners of kStage channels at a time in shared memory, as bounded floats, while the next ones are
// on their way.
#pragma once

#include "panoptic_fusion/workspace.cuh"

namespace upsnet::panoptic_fusion {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kStage = 8;  // channels
constexpr int kCornersX = 33, kCornersY = 3;
constexpr int kCorners = kCornersX * kCornersY;
constexpr int kColumns = 4, kRows = 2;  // pixels of a thread
constexpr int kPixels = kColumns * kRows;

// The semantic logits of one image; fewer than 2^31 (`is_supported`).
template <typename T>
struct SemanticMap {
  const T* data;
  int channel_stride, row_stride, column_stride;

  __device__ float at(int channel, int row, int column) const {
    return logit_of(data[channel * channel_stride + row * row_stride + column * column_stride]);
  }
};

template <typename T, Layout kLayout>
__device__ SemanticMap<T> semantic_map(const Params& p, int image) {
  const size_t channels = p.num_stuff + p.num_things, cells = size_t(p.height) * p.width;
  const T* data = static_cast<const T*>(p.semantic) + image * channels * cells;
  if (kLayout == Layout::kNCHW) return {data, int(cells), p.width, 1};
  return {data, 1, p.width * int(channels), int(channels)};
}

// The cell of a block's corner, clamped at the border.
struct Corner {
  int row, column;
};

__device__ inline Corner corner_of(const Params& p, int corner) {
  return {clamped(int(blockIdx.y) * 2 - 1 + corner / kCornersX, 0, p.height - 1),
          clamped(int(blockIdx.x) * 32 - 1 + corner % kCornersX, 0, p.width - 1)};
}

// Moves the block's corners, kStage channels at a time in order, first to registers (fetch), then to shared memory
// [kStage][kCorners] (store). Neighbouring threads read neighbouring addresses: here corners of one channel.
template <typename T, Layout kLayout>
struct Stager {
  const T* from;
  int stride, left;  // channels yet to be fetched
  bool active;
  T values[kStage];

  __device__ Stager(const Params& p, const SemanticMap<T>& map, int thread) : stride(map.channel_stride), values() {
    const Corner corner = corner_of(p, thread);
    active = thread < kCorners;
    from = map.data + corner.row * map.row_stride + corner.column;
    left = p.num_stuff + p.num_things;
  }
  __device__ void fetch() {
#pragma unroll
    for (int load = 0; load < kStage; ++load) {
      if (active && load < left) values[load] = *from;
      from += stride;
    }
    left -= kStage;
  }
  __device__ void store(int thread, float* stage) const {
    if (!active) return;
#pragma unroll
    for (int load = 0; load < kStage; ++load) stage[load * kCorners + thread] = logit_of(values[load]);
  }
};

// Channels of one corner.
template <typename T>
struct Stager<T, Layout::kNHWC> {
  static constexpr int kLoads = (kStage * kCorners + kThreads - 1) / kThreads;
  static constexpr int kStep = kThreads / kStage;  // corners from one load to the next
  const T* from;
  int offsets[kLoads];  // of the corners
  int left;
  T values[kLoads];

  __device__ Stager(const Params& p, const SemanticMap<T>& map, int thread) : values() {
#pragma unroll
    for (int load = 0; load < kLoads; ++load) {
      const Corner corner = corner_of(p, thread / kStage + load * kStep);
      offsets[load] = corner.row * map.row_stride + corner.column * map.column_stride;
    }
    from = map.data + thread % kStage;
    left = p.num_stuff + p.num_things - thread % kStage;
  }
  __device__ void fetch() {
#pragma unroll
    for (int load = 0; load < kLoads; ++load) {
      if (left > 0) values[load] = from[offsets[load]];
    }
    from += kStage, left -= kStage;
  }
  __device__ void store(int thread, float* stage) const {
#pragma unroll
    for (int load = 0; load < kLoads; ++load) {
      const int corner = thread / kStage + load * kStep;
      if (corner < kCorners) stage[thread % kStage * kCorners + corner] = logit_of(values[load]);
    }
  }
};

// A thread's pixels from the corners of its cell. half: 0 for the cell's upper two rows, 1 for its lower two.
__device__ inline void expand(float a, float b, float c, float d, int half, float (&values)[kPixels]) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float weight = phase_weight(2 * half + r);
    const float left = lerp(a, c, weight), right = lerp(b, d, weight);
#pragma unroll
    for (int k = 0; k < kColumns; ++k) values[r * kColumns + k] = lerp(left, right, phase_weight(k));
  }
}

// Eight bytes, each of which is found at a constant place.
struct Bytes {
  unsigned words[kRows];

  __device__ int get(int i) const { return words[i / kColumns] >> 8 * (i % kColumns) & 0xffu; }
  __device__ void set(int i, int value) {
    unsigned& word = words[i / kColumns];
    word = (word & ~(0xffu << 8 * (i % kColumns))) | unsigned(value) << 8 * (i % kColumns);
  }
};

// A thread's pixels while their argmax is sought.
struct Pixels {
  float best[kPixels], thing[kPixels], highest[kPixels];  // logit so far, of things semantically, of segment terms
  Bytes label, semantic;                                  // semantic: the best stuff, kNone where a thing is better
  int x, y;                                               // of the first one
};

// All channels: label and best become the best stuff's, ties to the lowest.
template <typename T, Layout kLayout>
__device__ void scan_channels(const Params& p, const SemanticMap<T>& map, Pixels& pixels) {
  __shared__ float stage[2][kStage * kCorners];
  const int channels = p.num_stuff + p.num_things, half = threadIdx.y % 2, thread = threadIdx.y * 32 + threadIdx.x;
  Stager<T, kLayout> stager(p, map, thread);
  float values[kPixels];
  int stuff[kPixels];
#pragma unroll
  for (int i = 0; i < kPixels; ++i) pixels.best[i] = pixels.thing[i] = -INFINITY, stuff[i] = 0;
  stager.fetch();
  for (int first = 0, turn = 0; first < channels; first += kStage, turn ^= 1) {
    stager.store(thread, stage[turn]);
    __syncthreads();
    stager.fetch();
    const float* at = stage[turn] + threadIdx.y / 2 * kCornersX + threadIdx.x;
    const int stop = smaller(first + kStage, channels), stop_stuff = smaller(p.num_stuff, stop);
    int c = first;
#pragma unroll 4
    for (; c < stop_stuff; ++c, at += kCorners) {
      expand(at[0], at[1], at[kCornersX], at[kCornersX + 1], half, values);
#pragma unroll
      for (int i = 0; i < kPixels; ++i) {
        if (values[i] > pixels.best[i]) stuff[i] = c;
        pixels.best[i] = higher(values[i], pixels.best[i]);
      }
    }
#pragma unroll 4
    for (; c < stop; ++c, at += kCorners) {
      expand(at[0], at[1], at[kCornersX], at[kCornersX + 1], half, values);
#pragma unroll
      for (int i = 0; i < kPixels; ++i) pixels.thing[i] = higher(values[i], pixels.thing[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    pixels.label.set(i, stuff[i]);
    pixels.semantic.set(i, pixels.thing[i] > pixels.best[i] ? kNone : stuff[i]);
  }
}

}  // namespace upsnet::panoptic_fusion
