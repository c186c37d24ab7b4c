// Step 2 of 3 on a GPU (launch.cu), its second half: after channels.cuh, before merge.cuh.
// The label of every pixel: argmax over stuff channels, accepted instances and unknown; and what the merge needs of it.
//
// After the channels (channels.cuh) come the accepted instances whose boxes touch the block, in score order. A warp
// blends the mask down to its eight rows of pixels once, then its lanes blend along them. The heuristic merge takes
// their bits, before the channels, which it leaves out where masks cover a whole block.
#pragma once

#include "panoptic_fusion/channels.cuh"

namespace upsnet::panoptic_fusion {

constexpr int kTileColumns = kAcross * kColumns, kTileRows = 32 / kAcross * kRows;  // pixels of a warp
static_assert(kTileColumns == 32 && kTileRows == 8, "a lane for each column of pixels");

// Blocks of label_pixels for whose 29 KB a multiprocessor has room: to make registers scarce for more is vain. With 72
// of them nothing spills, channels-last and where the merge is heuristic with 96.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ == 900 || __CUDA_ARCH__ / 100 == 10
constexpr int kResident = 7;
#elif __CUDA_ARCH__ < 800
constexpr int kResident = 2;
#elif __CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 870
constexpr int kResident = 5;
#else
constexpr int kResident = 3;
#endif
template <Layout kLayout, bool kHeuristic>
constexpr int kBlocksAtOnce = (kLayout == Layout::kNHWC || kHeuristic) && kResident > 5 ? 5 : kResident;

// The accepted detections whose boxes touch the block's pixels, in score order.
struct Instances {
  int count;
  int absent;  // the first accepted detection that does not touch the block; kNone
  uint8_t detections[kLabels];
  Window windows[kLabels];
};

__device__ inline bool touches(const Window& window, int first_x, int last_x, int first_y, int last_y) {
  return window.left <= last_x && window.last_column() >= first_x && window.top <= last_y &&
         window.last_row() >= first_y;
}

// The whole block calls it.
template <bool kHeuristic>
__device__ void list_instances(const Params& p, const uint8_t* accepted, int image, Instances& list) {
  __shared__ unsigned near[kLabels / 32];
  const int t = threadIdx.y * 32 + threadIdx.x;
  const int first_x = int(blockIdx.x) * 128 - 2, first_y = int(blockIdx.y) * 8 - 2;
  if (t == 0) list.absent = kNone;
  __syncthreads();
  for (int first = 0; first < p.detections; first += kThreads) {
    const int d = first + t;
    const size_t row = size_t(image) * p.detections + d;
    const bool exists = d < p.detections && accepted[row] != 0;
    const bool is_near =
        exists && touches(window_at<kHeuristic>(p.boxes + 4 * row), first_x, first_x + 127, first_y, first_y + 7);
    if (exists && !is_near) atomicMin(&list.absent, d);
    const unsigned vote = __ballot_sync(~0u, is_near);
    if (threadIdx.x == 0) near[d / 32] = vote;
  }
  __syncthreads();
  for (int first = 0; first < p.detections; first += kThreads) {
    const int d = first + t, last = (p.detections - 1) / 32;
    int place = 0;
    for (int word = 0; word < smaller(d / 32, last + 1); ++word) place += __popc(near[word]);
    if (d == 32 * last) list.count = place + __popc(near[last]);
    if (d / 32 > last || !(near[d / 32] >> d % 32 & 1u)) continue;
    place += __popc(near[d / 32] & ((1u << d % 32) - 1));
    list.detections[place] = uint8_t(d);
    list.windows[place] = window_at<kHeuristic>(p.boxes + 4 * (size_t(image) * p.detections + d));
  }
  if (p.detections == 0 && t == 0) list.count = 0;
  __syncthreads();
}

// An instance's mask while it competes for a warp's 32 x 8 pixels.
struct Tile {
  static constexpr int kMost = 64;          // two cells for each column of pixels
  float lines[kMost][kTileRows];            // columns of mask cells, blended down to the rows of pixels
  alignas(16) int places[kTileColumns];     // a column of pixels lies between lines[place] and the next
  alignas(16) float weights[kTileColumns];  // of the next
};

// Fills a tile. (x, y): its first pixel; those beside the mask's box count as its nearest. The whole warp calls it.
template <typename M>
__device__ void blend(const M* mask, int cells, const Window& window, int x, int y, Tile& tile) {
  const int lane = threadIdx.x, own_x = clamped(x + lane, window.left, larger(window.left, window.right));
  const int own_y = clamped(y + lane % kTileRows, window.top, larger(window.top, window.bottom));
  const Sample column = sample_of(own_x - window.left, window.right - window.left + 1, cells);
  const Sample row = sample_of(own_y - window.top, window.bottom - window.top + 1, cells);
  const int first = __shfl_sync(~0u, column.cell, 0), count = __shfl_sync(~0u, column.cell, 31) - first + 2;
  const bool wide = count > Tile::kMost;  // a narrow box of a large mask: two lines for each column of pixels
  tile.places[lane] = wide ? 2 * lane : column.cell - first;
  tile.weights[lane] = column.weight;
  const int stop = smaller(count, Tile::kMost);
  for (int done = 0; done < stop; done += 32 / kTileRows) {
    const int line = done + lane / kTileRows;
    int cell = first + line;
    if (wide) cell = __shfl_sync(~0u, column.cell, line / 2) + line % 2;
    if (line < stop) tile.lines[line][lane % kTileRows] = mask_column(mask, cells, row, smaller(cell, cells - 1));
  }
}

__device__ inline void blend(const Params& p, size_t row, const Window& window, int x, int y, Tile& tile) {
  const int cells = p.mask_size;
  const size_t first = row * cells * cells;
  switch (p.mask_logits_type) {
    case DType::kFloat32: return blend(static_cast<const float*>(p.mask_logits) + first, cells, window, x, y, tile);
    case DType::kFloat16: return blend(static_cast<const Half*>(p.mask_logits) + first, cells, window, x, y, tile);
    default: return blend(static_cast<const BFloat16*>(p.mask_logits) + first, cells, window, x, y, tile);
  }
}

// One instance competes for a thread's pixels. segment: its class's semantic logits there.
__device__ inline void compete(const Window& window, int label, const Tile& tile, const float (&segment)[kPixels],
                               Pixels& pixels) {
  const int first_column = threadIdx.x % kAcross * kColumns, first_row = threadIdx.x / kAcross * kRows;
#pragma unroll
  for (int k = 0; k < kColumns; ++k) {
    const int x = pixels.x + k, place = tile.places[first_column + k];
    const float weight = tile.weights[first_column + k];
    const bool mask_x = x >= window.left && x <= window.right;
    const bool segment_x = x >= window.left && x <= window.segment_right;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int i = r * kColumns + k, y = pixels.y + r;
      const bool mask_y = y >= window.top && y <= window.bottom;
      const bool segment_y = y >= window.top && y <= window.segment_bottom;
      const float blended = lerp(tile.lines[place][first_row + r], tile.lines[place + 1][first_row + r], weight);
      const float term = mask_x && mask_y ? blended : 0.0f;
      const float in_segment = segment_x && segment_y ? segment[i] : 0.0f;
      const float logit = in_segment + term;
      if (logit > pixels.best[i]) pixels.label.set(i, label);
      pixels.best[i] = higher(logit, pixels.best[i]);
      pixels.highest[i] = higher(in_segment, pixels.highest[i]);
    }
  }
}

// In shared memory while the instances compete.
struct Contest {
  Tile tiles[kWarps];
  float things[kPixels][kThreads];  // each its thread's own: the instances need the registers
  Bytes semantic[kThreads];
};

// Accepted instances, then unknown, take over the pixels where their logit is higher. The whole block calls it.
template <typename T>
__device__ void scan_instances(const Params& p, const SemanticMap<T>& map, const Instances& list, int image,
                               Contest& contest, Pixels& pixels) {
  const Seat seat;
  const int t = threadIdx.y * 32 + threadIdx.x;
  const int row = int(blockIdx.y) * kCellRows - 1 + seat.row, column = int(blockIdx.x) * kCellColumns - 1 + seat.column;
  const int top = clamped(row, 0, p.height - 1), bottom = clamped(row + 1, 0, p.height - 1);
  const int left = clamped(column, 0, p.width - 1), right = clamped(column + 1, 0, p.width - 1);
  const int first_x = pixels.x - int(threadIdx.x) % kAcross * kColumns;
  const int first_y = pixels.y - int(threadIdx.x) / kAcross * kRows;
  Tile& tile = contest.tiles[threadIdx.y];
  int absent = list.absent;
#pragma unroll
  for (int i = 0; i < kPixels; ++i) contest.things[i][t] = pixels.thing[i], pixels.highest[i] = -INFINITY;
  contest.semantic[t] = pixels.semantic;
  for (int k = 0; k < list.count; ++k) {
    const Window window = list.windows[k];
    const int detection = list.detections[k];
    const bool near = touches(window, pixels.x, pixels.x + kColumns - 1, pixels.y, pixels.y + kRows - 1);
    if (!near) absent = smaller(absent, detection);
    if (!__any_sync(~0u, near)) continue;
    const size_t index = size_t(image) * p.detections + detection;
    blend(p, index, window, first_x, first_y, tile);
    __syncwarp();
    if (near) {
      const int c = p.num_stuff + int(p.classes[index]);
      float segment[kPixels];
      expand(map.at(c, top, left), map.at(c, top, right), map.at(c, bottom, left), map.at(c, bottom, right), seat.half,
             segment);
      compete(window, p.num_stuff + detection, tile, segment, pixels);
    }
    __syncwarp();
  }
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    float best = pixels.best[i], highest = pixels.highest[i];
    if (absent != kNone) {
      if (absent_wins(best, pixels.label.get(i), p.num_stuff + absent)) pixels.label.set(i, p.num_stuff + absent);
      best = higher(best, 0.0f), highest = higher(highest, 0.0f);
    }
    if (list.count == 0 && absent == kNone) highest = 0.0f;
    if (contest.things[i][t] - highest > best) pixels.label.set(i, kVoid);
  }
  pixels.semantic = contest.semantic[t];
}

// The heuristic merge's instances, over a thread's pixels.
struct Cover {
  Bytes label;      // of the first accepted mask
  unsigned pixels;  // bit i: pixel i has one, or lies outside the image
};

// Four bits, as bytes that are 0 or 0xff.
__device__ inline unsigned bytes_of(unsigned bits) { return (bits * 0x00204081u & 0x01010101u) * 0xffu; }

// Four pixels from x on (x >= -2) of a mask's row of words.
__device__ inline unsigned four_bits(const unsigned* line, const Clip& clip, int x) {
  const int word = (x + 32) / 32 - 1, shift = x & 31;
  const auto at = [&](int w) { return w >= clip.first_x / 32 && w <= clip.last_x / 32 ? line[w] : 0u; };
  unsigned bits = at(word) >> shift;
  if (shift > 28) bits |= at(word + 1) << (32 - shift);
  return bits & 0xfu;
}

__device__ inline Cover find_cover(const Params& p, const unsigned* masks, const Valid& valid, const Instances& list,
                                   const Pixels& pixels) {
  const int words = (kScale * p.width + 31) / 32;
  const size_t plane = size_t(kScale) * p.height * words;
  Cover cover{};
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    const int x = pixels.x + i % kColumns, y = pixels.y + i / kColumns;
    cover.pixels |= unsigned(x < 0 || y < 0 || x >= valid.width || y >= valid.height) << i;
  }
  for (int k = 0; k < list.count && !__all_sync(~0u, cover.pixels == 0xffu); ++k) {
    const Clip clip = clip_of(list.windows[k], valid);
    const unsigned* mask = masks + list.detections[k] * plane;
    const unsigned label = unsigned(p.num_stuff + list.detections[k]) * 0x01010101u;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int y = pixels.y + r;
      if (y < clip.first_y || y > clip.last_y) continue;
      const unsigned found = four_bits(mask + size_t(y) * words, clip, pixels.x) & ~(cover.pixels >> r * kColumns);
      cover.pixels |= found << r * kColumns;
      cover.label.words[r] |= label & bytes_of(found);
    }
  }
  return cover;
}

// The first accepted mask, else the best semantic channel where that is stuff.
template <typename T, Layout kLayout>
__device__ void label_by_masks(const Params& p, const unsigned* masks, const Valid& valid, const Instances& list,
                               int image, Stage& stage, Pixels& pixels) {
  __shared__ Cover covers[kThreads];  // each its thread's own: the channels need the registers
  const int t = threadIdx.y * 32 + threadIdx.x;
  const Cover found = find_cover(p, masks, valid, list, pixels);
  covers[t] = found;
  pixels.label = found.label;
  if (!__syncthreads_and(found.pixels == 0xffu)) {
    scan_channels<T, kLayout>(p, semantic_map<T, kLayout>(p, image), false, stage, pixels);
    const Cover cover = covers[t];
    static_assert(kNone == kVoid, "where a thing is better");
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const unsigned covered = bytes_of(cover.pixels >> r * kColumns & 0xfu);
      pixels.label.words[r] = cover.label.words[r] | (pixels.semantic.words[r] & ~covered);
    }
  }
  pixels.semantic = {~0u, ~0u};  // nobody votes
}

// Adds a thread's pixels to the areas, boxes and votes of their labels. Pixels with the same label (and vote) are added
// up over the thread, then over the warp, then, but for votes, over the block in `extents` [kExtents][kLabels].
__device__ inline void count_pixels(const Params& p, const Pixels& pixels, int* votes, int* extents) {
  const int full_width = kScale * p.width, full_height = kScale * p.height;
  unsigned left = 0;  // pixels yet to be counted
#pragma unroll
  for (int i = 0; i < kPixels; ++i) left |= unsigned(pixels.label.get(i) != kVoid) << i;
  while (const unsigned pending = __ballot_sync(~0u, left != 0)) {
    if (left == 0) continue;
    int key = -1;
    unsigned same = 0;
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const int label = pixels.label.get(i), vote = label >= p.num_stuff ? pixels.semantic.get(i) : kNone;
      const bool waits = left >> i & 1u;
      if (waits && key < 0) key = label << 8 | vote;
      same |= unsigned(waits && key == (label << 8 | vote)) << i;
    }
    left &= ~same;
    const unsigned peers = __match_any_sync(pending, key);
    const unsigned columns = (same | same >> kColumns) & 0xfu;
    const int area = warp_add(peers, __popc(same));
    const int first_x = warp_min(peers, pixels.x + __ffs(columns) - 1);
    const int last_x = warp_max(peers, pixels.x + 31 - __clz(columns));
    const int first_y = warp_min(peers, same & 0xfu ? pixels.y : pixels.y + 1);
    const int last_y = warp_max(peers, same >> kColumns ? pixels.y + 1 : pixels.y);
    if (int(threadIdx.x) != __ffs(peers) - 1) continue;
    const int label = key >> 8, vote = key & 0xff;
    atomicAdd(&extents[kArea * kLabels + label], area);
    atomicMax(&extents[kFromRight * kLabels + label], full_width - first_x);
    atomicMax(&extents[kFromBottom * kLabels + label], full_height - first_y);
    atomicMax(&extents[kToRight * kLabels + label], last_x + 1);
    atomicMax(&extents[kToBottom * kLabels + label], last_y + 1);
    if (vote != kNone) atomicAdd(&votes[(label - p.num_stuff) * p.num_stuff + vote], area);
  }
}

// A thread's x is 2 beyond a multiple of 4: two stores of two pixels a row, each wholly inside the map or outside.
__device__ inline void store_labels(const Params& p, const Pixels& pixels, uint8_t* map) {
  const int width = kScale * p.width;
  if (pixels.y < 0 || pixels.y >= kScale * p.height) return;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    uint8_t* at = map + size_t(pixels.y + r) * width + pixels.x;
    const unsigned word = pixels.label.words[r];
    if (pixels.x >= 0 && pixels.x < width) *reinterpret_cast<uint16_t*>(at) = uint16_t(word);
    if (pixels.x + 2 < width) *reinterpret_cast<uint16_t*>(at + 2) = uint16_t(word >> 16);
  }
}

// Labels into p.panoptic, their extents and votes into the workspace. grid: (cells + 1 by 32, pairs of rows + 1 by 4,
// batch).
template <typename T, Layout kLayout, bool kHeuristic>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce<kLayout, kHeuristic>)
    label_pixels(Params p, Workspace workspace) {
  __shared__ Instances list;
  __shared__ union {  // one after the other
    Stage stage;
    Contest contest;
    int extents[kExtents * kLabels];
  } shared;
  const int image = blockIdx.z, t = threadIdx.y * 32 + threadIdx.x;
  const Valid valid = valid_of(p, image);
  const Seat seat;
  Pixels pixels;
  pixels.x = (int(blockIdx.x) * kCellColumns + seat.column) * kScale - 2;
  pixels.y = (int(blockIdx.y) * kCellRows + seat.row) * kScale + seat.half * kRows - 2;
  uint8_t* map = p.panoptic + size_t(image) * kScale * p.height * kScale * p.width;
  if (int(blockIdx.x) * 128 - 2 >= valid.width || int(blockIdx.y) * 8 - 2 >= valid.height) {
    pixels.label = {~0u, ~0u};
    store_labels(p, pixels, map);
    return;
  }
  list_instances<kHeuristic>(p, workspace.accepted, image, list);
  if (kHeuristic) {
    const size_t plane = size_t(kScale) * p.height * ((kScale * p.width + 31) / 32);
    label_by_masks<T, kLayout>(p, workspace.masks + size_t(image) * p.detections * plane, valid, list, image,
                               shared.stage, pixels);
  } else {
    const SemanticMap<T> semantic = semantic_map<T, kLayout>(p, image);
    scan_channels<T, kLayout>(p, semantic, list.absent == kNone && list.count > 0, shared.stage, pixels);
    __syncthreads();
    scan_instances(p, semantic, list, image, shared.contest, pixels);
  }
  const Valid inside = valid_of(p, image);  // again: the channels need the registers
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    const int x = pixels.x + i % kColumns, y = pixels.y + i / kColumns;
    if (x < 0 || y < 0 || x >= inside.width || y >= inside.height) pixels.label.set(i, kVoid);
  }
  store_labels(p, pixels, map);
  int* extents = shared.extents;
  __syncthreads();
  for (int i = t; i < kExtents * kLabels; i += kThreads) extents[i] = 0;
  __syncthreads();
  count_pixels(p, pixels, workspace.votes + size_t(image) * p.detections * p.num_stuff, extents);
  __syncthreads();
  int* totals = workspace.extents + size_t(image) * kExtents * kLabels;
  for (int label = t; label < kLabels; label += kThreads) {
    const int area = extents[kArea * kLabels + label];
    if (area == 0) continue;
    atomicAdd(&totals[kArea * kLabels + label], area);
    for (int i = kFromRight; i < kExtents; ++i) atomicMax(&totals[i * kLabels + label], extents[i * kLabels + label]);
  }
}

}  // namespace upsnet::panoptic_fusion
