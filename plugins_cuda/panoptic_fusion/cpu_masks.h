// Step 1 of 3 on a CPU (cpu.cpp): what prune.cuh is on a GPU.
// The CPU front's detections: masks as bits, greedy pruning class by class.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/pool.h"
#include "panoptic_fusion/kernel.cuh"

namespace upsnet::panoptic_fusion {

struct Detection {
  int index, category;
  Window window;
  Clip clip;
  int mask_size = 0;
  std::vector<float> mask;  // bounded logits [mask_size, mask_size]
  std::vector<int> cells;   // of every column of the clip: see Sample
  std::vector<float> weights;
  std::vector<uint64_t> bits;  // the clip's rows, words() each: term > 0
  int area = 0;

  int columns() const { return clip.last_x - clip.first_x + 1; }
  int first_word() const { return clip.first_x / 64; }
  int words() const { return clip.last_x / 64 - first_word() + 1; }
};

template <typename T>
std::vector<float> bounded_mask(const Params& p, size_t row) {
  const size_t cells = size_t(p.mask_size) * p.mask_size;
  const T* mask = static_cast<const T*>(p.mask_logits) + row * cells;
  std::vector<float> bounded(cells);
  for (size_t i = 0; i < cells; ++i) bounded[i] = logit_of(mask[i]);
  return bounded;
}

inline std::vector<float> bounded_mask(const Params& p, size_t row) {
  switch (p.mask_logits_type) {
    case DType::kFloat32: return bounded_mask<float>(p, row);
    case DType::kFloat16: return bounded_mask<Half>(p, row);
    default: return bounded_mask<BFloat16>(p, row);
  }
}

inline void place(const Params& p, int image, int index, const Valid& valid, Detection& detection) {
  const size_t row = size_t(image) * p.detections + index;
  const Window window = window_of(p.boxes + 4 * row);
  detection.index = index;
  detection.category = int(p.classes[row]);
  detection.window = window;
  detection.clip = clip_of(window, valid);
  if (detection.clip.empty()) return;
  detection.mask_size = p.mask_size;
  detection.mask = bounded_mask(p, row);
  const int columns = detection.columns();
  detection.cells.resize(columns), detection.weights.resize(columns);
  for (int i = 0; i < columns; ++i) {
    const int pixel = detection.clip.first_x + i - window.left;
    const Sample sample = sample_of(pixel, window.right - window.left + 1, p.mask_size);
    detection.cells[i] = sample.cell, detection.weights[i] = sample.weight;
  }
}

// The mask terms of row y, the clip's columns. line: scratch of mask_size + 1.
inline void mask_terms(const Detection& detection, int y, float* line, float* __restrict terms) {
  const Window& window = detection.window;
  const int cells = detection.mask_size, columns = int(detection.cells.size());
  const Sample row = sample_of(y - window.top, window.bottom - window.top + 1, cells);
  for (int c = 0; c < cells; ++c) line[c] = mask_column(detection.mask.data(), cells, row, c);
  line[cells] = line[cells - 1];  // next_cell of the last one
  const int* cell = detection.cells.data();
  const float* weight = detection.weights.data();
  for (int i = 0; i < columns; ++i) terms[i] = lerp(line[cell[i]], line[cell[i] + 1], weight[i]);
}

// Eight bytes that are 0 or 1, as the bits of one.
inline uint64_t gather_bits(const uint8_t* flags) {
  uint64_t bytes;
  std::memcpy(&bytes, flags, sizeof bytes);
  if (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__) bytes = __builtin_bswap64(bytes);
  return bytes * 0x0102040810204080u >> 56;
}

inline void rasterize(Detection& detection) {
  const Clip& clip = detection.clip;
  if (clip.empty()) return;
  const int words = detection.words(), columns = detection.columns(), offset = clip.first_x % 64;
  std::vector<float> line(detection.mask_size + 1), terms(columns);
  std::vector<uint8_t> flags(size_t(words) * 64, 0);
  detection.bits.resize(size_t(words) * (clip.last_y - clip.first_y + 1));
  uint64_t* word = detection.bits.data();
  for (int y = clip.first_y; y <= clip.last_y; ++y) {
    mask_terms(detection, y, line.data(), terms.data());
    const float* term = terms.data();
    uint8_t* flag = flags.data() + offset;
#pragma omp simd
    for (int i = 0; i < columns; ++i) flag[i] = term[i] > 0.0f;
    for (int w = 0; w < words; ++w, ++word) {
      uint64_t bits = 0;
      for (int byte = 0; byte < 8; ++byte) bits |= gather_bits(&flags[w * 64 + byte * 8]) << 8 * byte;
      *word = bits;
      detection.area += __builtin_popcountll(bits);
    }
  }
}

// Greedy pruning of one class; members in score order. Accepted ones are marked in `accepted`, by place.
inline void prune(const std::vector<Detection>& detections, const std::vector<int>& members, float threshold,
                  std::vector<uint8_t>& accepted) {
  int first_word = 1 << 30, first_y = 1 << 30, last_word = -1, last_y = -1;  // around all masks
  for (const int member : members) {
    const Detection& d = detections[member];
    if (d.clip.empty()) continue;
    first_word = smaller(first_word, d.first_word()), last_word = larger(last_word, d.first_word() + d.words() - 1);
    first_y = smaller(first_y, d.clip.first_y), last_y = larger(last_y, d.clip.last_y);
  }
  if (last_y < 0) return;
  const int pitch = last_word - first_word + 1;
  std::vector<uint64_t> taken(members.size() > 1 ? size_t(pitch) * (last_y - first_y + 1) : 0);
  for (const int member : members) {
    const Detection& d = detections[member];
    if (d.area == 0) continue;
    const int words = d.words();
    const auto rows = [&](auto visit) {
      for (int y = d.clip.first_y; y <= d.clip.last_y; ++y) {
        visit(&taken[size_t(y - first_y) * pitch + d.first_word() - first_word],
              &d.bits[size_t(y - d.clip.first_y) * words]);
      }
    };
    int overlap = 0;
    if (!taken.empty()) {
      rows([&](const uint64_t* before, const uint64_t* mask) {
        for (int w = 0; w < words; ++w) overlap += __builtin_popcountll(before[w] & mask[w]);
      });
    }
    if (!is_accepted(overlap, d.area, threshold)) continue;
    accepted[member] = 1;
    if (taken.empty()) continue;
    rows([&](uint64_t* before, const uint64_t* mask) {
      for (int w = 0; w < words; ++w) before[w] |= mask[w];
    });
  }
}

// The detections of an image that survive, in score order; their bits are gone again.
inline std::vector<Detection> accepted_detections(const Params& p, int image, const Valid& valid, const Pool& pool) {
  std::vector<Detection> detections;
  for (int i = 0; i < valid.detections; ++i) {
    const size_t row = size_t(image) * p.detections + i;
    if (!is_usable(p.boxes + 4 * row, p.classes[row], p.num_things)) continue;
    detections.emplace_back();
    detections.back().index = i;
  }
  const int found = int(detections.size());
  for_each(pool, found, 1, [&](int64_t i, int) {
    place(p, image, detections[i].index, valid, detections[i]);
    rasterize(detections[i]);
  });
  std::vector<std::vector<int>> classes;  // places of detections, by class
  std::vector<int> slots(p.num_things, -1);
  for (int i = 0; i < found; ++i) {
    int& slot = slots[detections[i].category];
    if (slot < 0) slot = int(classes.size()), classes.emplace_back();
    classes[slot].push_back(i);
  }
  std::vector<uint8_t> accepted(found, 0);
  for_each(pool, classes.size(), 1,
           [&](int64_t i, int) { prune(detections, classes[i], p.mask_overlap_threshold, accepted); });
  std::vector<Detection> kept;
  for (int i = 0; i < found; ++i) {
    if (!accepted[i]) continue;
    std::vector<uint64_t>().swap(detections[i].bits);
    kept.push_back(std::move(detections[i]));
  }
  return kept;
}

}  // namespace upsnet::panoptic_fusion
