// Step 2 of 3 on a GPU (launch.cu), its first half: label.cuh continues with the instances.
// All semantic channels over the pixels of a block: best stuff and best thing.
//
// A block owns 32 x 2 cells (a cell: the 4 x 4 pixels between four corners), a warp 8 x 2, a thread the upper or lower
// half of one, 4 x 2 pixels. Most channels cannot be the best of any pixel of a cell, and its corners say so: a lerp
// stays between what it blends. Rounded, too: for a <= b it is fl(a + w fl(b - a)), fl(b - a) <= (1 + 2^-24) (b - a)
// (no overflow, the logits are bounded; exact where subnormal), and as w <= 7/8 the sum before its rounding is at most
// b - (1/8 - 7/8 2^-24) (b - a) <= b, so after it, too; and at least a; b < a likewise. So no channel is anywhere
// higher than its highest corner or lower than its lowest, without any slack, and one whose highest corner is below
// another's lowest never wins. One that only equals it can tie, and stays.
//
// Channels go through shared memory in chunks of one kind, stuff or things. Of a chunk each warp takes a quarter and
// finds each cell's floor, the highest of all lowest corners; then, which channels reach it in any cell of a warp.
// These alone are interpolated, by that whole warp.
#pragma once

#include "panoptic_fusion/packed.cuh"

namespace upsnet::panoptic_fusion {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kCellRows = 2, kCellColumns = 32;  // of a block
constexpr int kAcross = kCellColumns / kWarps;   // cells of a warp side by side
constexpr int kCornersX = kCellColumns + 1, kCornersY = kCellRows + 1;
constexpr int kCorners = kCornersX * kCornersY;
constexpr int kPitch = 40;  // from corner to corner below in shared memory: a warp's two rows lie in other banks
constexpr int kStage = 40;  // words of each corner in shared memory
constexpr int kColumns = 4, kRows = 2;  // pixels of a thread
constexpr int kPixels = kColumns * kRows;

// Where a thread is in its block: the column and row of its cell, and which half of it is its own.
struct Seat {
  int column, row, half;

  __device__ Seat()
      : column(threadIdx.y * kAcross + threadIdx.x % kAcross),
        row(threadIdx.x / (2 * kAcross)),
        half(threadIdx.x / kAcross % 2) {}
};

// Where corner i, counted row by row, lies in shared memory.
__device__ inline int place_of_corner(int i) { return i + i / kCornersX * (kPitch - kCornersX); }

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

// Channels of one kind that are in shared memory together: word k has channels first + k and, with 16 bits,
// first + words + k.
struct Chunk {
  int first, count, words;
};

struct Stage {
  unsigned words[kStage][kCornersY * kPitch];
  int offsets[kCorners];  // of the corners' cells, from a channel's first
  unsigned floors[kWarps][kCellRows][kCellColumns];
  unsigned reach[kWarps]
                [kWarps];  // [i][warp] bit j (and 16 + j): word kWarps * j + i reaches a floor of the warp's cells
};

// Brings a chunk to shared memory; is there a NaN in it, or a logit beyond the bounds? Neighbouring threads read
// neighbouring addresses: here corners of one channel, a thread all channels of its own.
template <typename T, Layout kLayout>
struct Filler {
  using Word = Packed<T>;
  static constexpr int kBatch = 8;  // words on their way together

  // Words k .. k + kBatch - 1; last: the chunk's last word is the last of these, or (kFew) comes before.
  template <bool kFew>
  static __device__ bool move(const T* from, int stride, const Chunk& chunk, int k, unsigned* to) {
    T values[kBatch][Word::kSides];
    const int most = chunk.words - 1 - k;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int word = k + (kFew ? smaller(i, most) : i);
      values[i][0] = from[word * stride];
      if (Word::kSides == 1) continue;
      const bool can_be_last = kFew || i == kBatch - 1;
      const int channel = word + chunk.words;
      values[i][Word::kSides - 1] = from[(can_be_last ? smaller(channel, chunk.count - 1) : channel) * stride];
    }
    bool exceeds = false;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const unsigned word = Word::pack(values[i]);
      exceeds |= Word::exceeds(word);
      if (!kFew || i <= most) to[(k + i) * kCornersY * kPitch] = word;
    }
    return exceeds;
  }

  static __device__ bool fill(const SemanticMap<T>& map, const Chunk& chunk, int thread, Stage& stage) {
    if (thread >= kCorners) return false;
    const int stride = map.channel_stride;
    const T* from = map.data + (chunk.first * stride + stage.offsets[thread]);
    unsigned* to = &stage.words[0][place_of_corner(thread)];
    if (chunk.words < kBatch) return move<true>(from, stride, chunk, 0, to);
    bool exceeds = false;
    int k = 0;
    for (; k < chunk.words - kBatch; k += kBatch) exceeds |= move<false>(from, stride, chunk, k, to);
    return exceeds | move<false>(from, stride, chunk, chunk.words - kBatch, to);  // some a second time
  }
};

// Channels of one corner; a thread has up to kSteps words of every eighth corner.
template <typename T>
struct Filler<T, Layout::kNHWC> {
  using Word = Packed<T>;
  static constexpr int kLanes = 16;  // words side by side
  static constexpr int kSteps = (kStage + kLanes - 1) / kLanes;

  static __device__ bool fill(const SemanticMap<T>& map, const Chunk& chunk, int thread, Stage& stage) {
    const int k = thread % kLanes, steps = (chunk.words - k + kLanes - 1) / kLanes;
    const T* from = map.data + chunk.first + k;
    const int last = chunk.count - 1 - k;
    bool exceeds = false;
#pragma unroll 2
    for (int corner = thread / kLanes; corner < kCorners; corner += kThreads / kLanes) {
      const T* at = from + stage.offsets[corner];
      T values[kSteps][Word::kSides];
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        if (i < steps) values[i][0] = at[i * kLanes];
        if (Word::kSides == 2 && i < steps) values[i][Word::kSides - 1] = at[smaller(chunk.words + i * kLanes, last)];
      }
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        const unsigned word = Word::pack(values[i]);
        exceeds |= i < steps && Word::exceeds(word);
        if (i < steps) stage.words[k + i * kLanes][place_of_corner(corner)] = word;
      }
    }
    return exceeds;
  }
};

// What the best channel of a thread's two cells, one below the other, has at least; so far, of the warp's words.
struct Floors {
  unsigned cells[kCellRows];
};

template <typename T>
__device__ void raise_floors(const Chunk& chunk, const Stage& stage, Floors& floors) {
  using Word = Packed<T>;
#pragma unroll 4
  for (int k = threadIdx.y; k < chunk.words; k += kWarps) {
    const unsigned* at = &stage.words[k][threadIdx.x];
    unsigned above = Word::least(at[0], at[1]);
#pragma unroll
    for (int row = 0; row < kCellRows; ++row) {
      at += kPitch;
      const unsigned below = Word::least(at[0], at[1]);
      floors.cells[row] = Word::most(floors.cells[row], Word::least(above, below));
      above = below;
    }
  }
}

// All warps' floors, each side the highest.
template <typename T>
__device__ Floors joined_floors(const Stage& stage) {
  using Word = Packed<T>;
  Floors floors;
#pragma unroll
  for (int row = 0; row < kCellRows; ++row) {
    unsigned all = stage.floors[0][row][threadIdx.x];
#pragma unroll
    for (int warp = 1; warp < kWarps; ++warp) all = Word::most(all, stage.floors[warp][row][threadIdx.x]);
    floors.cells[row] = Word::kSides == 2 ? Word::most(all, all << 16 | all >> 16) : all;
  }
  return floors;
}

template <typename T>
__device__ void find_reach(const Chunk& chunk, const Floors& floors, Stage& stage) {
  using Word = Packed<T>;
  unsigned reach[kCellRows] = {}, bit = 0x10001u;
#pragma unroll 4
  for (int k = threadIdx.y; k < chunk.words; k += kWarps, bit += bit) {
    const unsigned* at = &stage.words[k][threadIdx.x];
    unsigned above = Word::most(at[0], at[1]);
#pragma unroll
    for (int row = 0; row < kCellRows; ++row) {
      at += kPitch;
      const unsigned below = Word::most(at[0], at[1]);
      reach[row] |= Word::at_least(Word::most(above, below), floors.cells[row]) & bit;
      above = below;
    }
  }
  unsigned any = reach[0] | reach[1];
#pragma unroll
  for (int step = kAcross / 2; step > 0; step /= 2) any |= __shfl_xor_sync(~0u, any, step);
  if (threadIdx.x % kAcross == 0) stage.reach[threadIdx.y][threadIdx.x / kAcross] = any;
}

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

// One stuff channel, in ascending order: ties go to the lowest.
struct Stuff {
  float (&best)[kPixels];
  int (&label)[kPixels];

  __device__ void add(int channel, const float (&values)[kPixels]) {
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      if (values[i] > best[i]) label[i] = channel;
      best[i] = higher(values[i], best[i]);
    }
  }
};

struct Things {
  float (&best)[kPixels];

  __device__ void add(int, const float (&values)[kPixels]) {
#pragma unroll
    for (int i = 0; i < kPixels; ++i) best[i] = higher(values[i], best[i]);
  }
};

// Interpolates the channels of a chunk that reach the floor of a cell of the warp, or (kAll) all, whose logits may
// exceed the bounds.
template <typename T, bool kAll, typename Kind>
__device__ void interpolate(const Chunk& chunk, const Stage& stage, Kind kind) {
  const Seat seat;
  const int corner = seat.row * kPitch + seat.column;
  for (int first = 0; first < chunk.count; first += 32) {
    const int own = first + threadIdx.x, side = own >= chunk.words, k = own - side * chunk.words;
    const bool reaches =
        own < chunk.count && (kAll || stage.reach[k % kWarps][threadIdx.y] >> (k / kWarps + 16 * side) & 1u);
    for (unsigned left = __ballot_sync(~0u, reaches); left != 0; left &= left - 1) {
      const int channel = first + __ffs(left) - 1, on = channel >= chunk.words;
      const unsigned* words = &stage.words[channel - on * chunk.words][corner];
      const auto at = [=](int i) {
        const T logit = reinterpret_cast<const T*>(words + i)[on];
        return kAll ? logit_of(logit) : to_float(logit);
      };
      float values[kPixels];
      expand(at(0), at(1), at(kPitch), at(kPitch + 1), seat.half, values);
      kind.add(chunk.first + channel, values);
    }
  }
}

// Channels first .. stop - 1. The whole block calls it.
template <typename T, Layout kLayout, typename Kind>
__device__ void scan_kind(const SemanticMap<T>& map, int first, int stop, Floors& floors, Stage& stage, Kind kind) {
  constexpr int kMost = kStage * Packed<T>::kSides;
  const int chunks = (stop - first - 1) / kMost + 1, size = (stop - first - 1) / chunks + 1;
  for (int left = stop - first; left > 0; left -= size) {
    const int count = smaller(size, left);
    const Chunk chunk{stop - left, count, (count + Packed<T>::kSides - 1) / Packed<T>::kSides};
    __syncthreads();
    if (__syncthreads_or(Filler<T, kLayout>::fill(map, chunk, threadIdx.y * 32 + threadIdx.x, stage))) {
      interpolate<T, true>(chunk, stage, kind);
      continue;
    }
    raise_floors<T>(chunk, stage, floors);
#pragma unroll
    for (int row = 0; row < kCellRows; ++row) stage.floors[threadIdx.y][row][threadIdx.x] = floors.cells[row];
    __syncthreads();
    find_reach<T>(chunk, joined_floors<T>(stage), stage);
    __syncthreads();
    interpolate<T, false>(chunk, stage, kind);
  }
}

// All channels: label and best become the best stuff's, ties to the lowest. Things that are nowhere better than that
// stuff are left out, unless `things_alone`: a thing counts by itself where instances can have pushed `highest` below
// 0.
template <typename T, Layout kLayout>
__device__ void scan_channels(const Params& p, const SemanticMap<T>& map, bool things_alone, Stage& stage,
                              Pixels& pixels) {
  const int thread = threadIdx.y * 32 + threadIdx.x;
  if (thread < kCorners) {
    const int row = clamped(int(blockIdx.y) * kCellRows - 1 + thread / kCornersX, 0, p.height - 1);
    const int column = clamped(int(blockIdx.x) * 32 - 1 + thread % kCornersX, 0, p.width - 1);
    stage.offsets[thread] = row * map.row_stride + column * map.column_stride;
  }
  const unsigned lowest = Packed<T>::all(-INFINITY);
  Floors floors{lowest, lowest};
  int stuff[kPixels];
#pragma unroll
  for (int i = 0; i < kPixels; ++i) pixels.best[i] = -INFINITY, stuff[i] = 0;
  scan_kind<T, kLayout>(map, 0, p.num_stuff, floors, stage, Stuff{pixels.best, stuff});
#pragma unroll
  for (int i = 0; i < kPixels; ++i) pixels.label.set(i, stuff[i]), pixels.thing[i] = -INFINITY;
  if (things_alone) floors = {lowest, lowest};
  scan_kind<T, kLayout>(map, p.num_stuff, p.num_stuff + p.num_things, floors, stage, Things{pixels.thing});
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    pixels.semantic.set(i, pixels.thing[i] > pixels.best[i] ? kNone : pixels.label.get(i));
  }
}

}  // namespace upsnet::panoptic_fusion
