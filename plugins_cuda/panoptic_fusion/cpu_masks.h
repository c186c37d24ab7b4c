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
  int pitch = 0;            // of the mask: cells and one more on each side
  std::vector<float> mask;  // [pitch, pitch], bounded logits in copies of their edge, or probabilities in zeros
  std::vector<Sample> rows, columns;  // of the clip, among those cells
  std::vector<uint64_t> bits;         // the clip's rows, words() each: the pixels of the mask
  int area = 0;

  int first_word() const { return clip.first_x / 64; }
  int words() const { return clip.last_x / 64 - first_word() + 1; }
  const uint64_t* bits_of(int y) const { return &bits[size_t(y - clip.first_y) * words()]; }
};

template <typename T>
std::vector<float> mask_of(const Params& p, size_t row) {
  const int cells = p.mask_size, pitch = cells + 2;
  const T* mask = static_cast<const T*>(p.mask_logits) + row * cells * cells;
  std::vector<float> padded(size_t(pitch) * pitch);
  for (int y = 0; y < pitch; ++y) {
    for (int x = 0; x < pitch; ++x) {
      float& cell = padded[y * pitch + x];
      if (p.heuristic)
        cell = probability_at(mask, cells, y - 1, x - 1);
      else
        cell = logit_of(mask[clamped(y - 1, 0, cells - 1) * cells + clamped(x - 1, 0, cells - 1)]);
    }
  }
  return padded;
}

inline std::vector<float> mask_of(const Params& p, size_t row) {
  switch (p.mask_logits_type) {
    case DType::kFloat32: return mask_of<float>(p, row);
    case DType::kFloat16: return mask_of<Half>(p, row);
    default: return mask_of<BFloat16>(p, row);
  }
}

// Where pixels first .. last of a line lie in a padded mask. low, high: the box; start, stop: its window.
inline std::vector<Sample> samples_of(const Params& p, int first, int last, float low, float high, int start,
                                      int stop) {
  std::vector<Sample> samples;
  samples.reserve(last - first + 1);
  for (int pixel = first; pixel <= last; ++pixel) {
    const Sample sample = p.heuristic ? pasted_sample_of(pixel, low, high, p.mask_size)
                                      : sample_of(pixel - start, stop - start + 1, p.mask_size);
    samples.push_back({sample.cell + 1, sample.weight});
  }
  return samples;
}

inline void place(const Params& p, int image, int index, const Valid& valid, Detection& detection) {
  const size_t row = size_t(image) * p.detections + index;
  const Window window = window_of(p, row);
  const Clip clip = clip_of(window, valid);
  detection.index = index;
  detection.category = int(p.classes[row]);
  detection.window = window;
  detection.clip = clip;
  if (clip.empty()) return;
  float box[4];
  for (int i = 0; i < 4; ++i) box[i] = bounded_coordinate(p.boxes[4 * row + i]);
  detection.pitch = p.mask_size + 2;
  detection.mask = mask_of(p, row);
  detection.columns = samples_of(p, clip.first_x, clip.last_x, box[0], box[2], window.left, window.right);
  detection.rows = samples_of(p, clip.first_y, clip.last_y, box[1], box[3], window.top, window.bottom);
}

// The mask's columns, blended to row y: line[pitch].
inline void blend_rows(const Detection& detection, int y, float* __restrict line) {
  const Sample row = detection.rows[y - detection.clip.first_y];
  const float* upper = &detection.mask[size_t(row.cell) * detection.pitch];
  for (int c = 0; c < detection.pitch; ++c) line[c] = lerp(upper[c], upper[c + detection.pitch], row.weight);
}

// The mask terms of row y, the clip's columns. line: scratch of the mask's pitch.
inline void mask_terms(const Detection& detection, int y, float* line, float* __restrict terms) {
  blend_rows(detection, y, line);
  const Sample* columns = detection.columns.data();
  const int count = int(detection.columns.size());
  for (int i = 0; i < count; ++i) {
    const Sample column = columns[i];
    terms[i] = lerp(line[column.cell], line[column.cell + 1], column.weight);
  }
}

// Sets bits first .. stop - 1.
inline void set_bits(uint64_t* words, int first, int stop) {
  for (int start = first; start < stop;) {
    const int end = smaller(stop, (start / 64 + 1) * 64);
    words[start / 64] |= ~uint64_t{0} >> (64 - (end - start)) << start % 64;
    start = end;
  }
}

// The bits of a detection, and their sum. Between two cells the values of a row of pixels rise or fall: there the mask
// has all of them, or none, or those on one side of a place that is searched for.
template <typename InMask>
void rasterize(Detection& detection, InMask in_mask) {
  const Clip& clip = detection.clip;
  const int words = detection.words(), offset = clip.first_x % 64, count = int(detection.columns.size());
  const Sample* columns = detection.columns.data();
  std::vector<int> starts;  // of columns between the same cells
  for (int i = 0; i < count; ++i) {
    if (i == 0 || columns[i].cell != columns[i - 1].cell) starts.push_back(i);
  }
  starts.push_back(count);
  std::vector<float> line(detection.pitch);
  detection.bits.resize(size_t(words) * (clip.last_y - clip.first_y + 1));
  uint64_t* bits = detection.bits.data();
  for (int y = clip.first_y; y <= clip.last_y; ++y, bits += words) {
    blend_rows(detection, y, line.data());
    for (size_t run = 0; run + 1 < starts.size(); ++run) {
      const int first = starts[run], stop = starts[run + 1];
      const float *cell = &line[columns[first].cell], left = cell[0], right = cell[1];
      const auto is_set = [&](int i) { return in_mask(lerp(left, right, columns[i].weight)); };
      const bool begins = is_set(first), ends = is_set(stop - 1);
      if (!begins && !ends) continue;
      int low = first, high = stop - 1;  // alike up to low, and from high on
      while (begins != ends && high - low > 1) {
        const int middle = (low + high) / 2;
        (is_set(middle) == begins ? low : high) = middle;
      }
      set_bits(bits, offset + (begins ? first : high), offset + (ends ? stop : high));
    }
  }
  for (const uint64_t word : detection.bits) detection.area += __builtin_popcountll(word);
}

inline void rasterize(const Params& p, Detection& detection) {
  if (detection.clip.empty()) return;
  if (p.heuristic)
    rasterize(detection, [](float value) { return is_pasted(value); });
  else
    rasterize(detection, [](float value) { return value > 0.0f; });
}

// Greedy pruning of one class, or of all as one; members in score order. Accepted ones are marked in `accepted`, by
// place.
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
        visit(&taken[size_t(y - first_y) * pitch + d.first_word() - first_word], d.bits_of(y));
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

// The detections of an image that survive, in score order.
inline std::vector<Detection> accepted_detections(const Params& p, int image, const Valid& valid, const Pool& pool) {
  std::vector<Detection> detections;
  for (int i = 0; i < valid.detections; ++i) {
    if (!is_usable(p, size_t(image) * p.detections + i)) continue;
    detections.emplace_back();
    detections.back().index = i;
  }
  const int found = int(detections.size());
  for_each(pool, found, 1, [&](int64_t i, int) {
    place(p, image, detections[i].index, valid, detections[i]);
    rasterize(p, detections[i]);
  });
  std::vector<std::vector<int>> classes;  // places of detections, by class; heuristic: all in one
  std::vector<int> slots(p.heuristic ? 1 : p.num_things, -1);
  for (int i = 0; i < found; ++i) {
    int& slot = slots[p.heuristic ? 0 : detections[i].category];
    if (slot < 0) slot = int(classes.size()), classes.emplace_back();
    classes[slot].push_back(i);
  }
  std::vector<uint8_t> accepted(found, 0);
  for_each(pool, classes.size(), 1,
           [&](int64_t i, int) { prune(detections, classes[i], p.mask_overlap_threshold, accepted); });
  std::vector<Detection> kept;
  for (int i = 0; i < found; ++i) {
    if (!accepted[i]) continue;
    if (!p.heuristic) std::vector<uint64_t>().swap(detections[i].bits);
    kept.push_back(std::move(detections[i]));
  }
  return kept;
}

}  // namespace upsnet::panoptic_fusion
