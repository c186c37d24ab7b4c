// Step 2 of 3 on a CPU (cpu.cpp): what channels.cuh and label.cuh are on a GPU. Step 3 is in cpu.cpp.
// The CPU front's labels: one row of pixels at a time, all channels over it, then the accepted instances that touch it.
//
// A quarter-resolution row is turned into bounded floats, [channel][cell + 1], once for the pixel rows that lie between
// it and its neighbours. Eight cells times four phases stay in vector registers while the channels run past: per
// channel and 32 pixels, four loads, nine operations to interpolate, four (things) or twelve (stuff) to compare. Pixels
// of a row are kept two places to the right (place = x + 2), so that place 4n + k is phase k of the cell before n.
#pragma once

#include "panoptic_fusion/cpu_masks.h"

namespace upsnet::panoptic_fusion {

#ifdef __AVX__
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
using Floats = float __attribute__((vector_size(4 * kLanes)));
using Ints = int32_t __attribute__((vector_size(4 * kLanes)));

inline Floats load_floats(const float* from) {
  Floats values;
  std::memcpy(&values, from, sizeof values);
  return values;
}

inline Floats splat(float value) { return value - Floats{}; }

inline Floats lerp(Floats a, Floats b, float weight) {
  const Floats difference = b - a;
  float from[kLanes], step[kLanes];
  std::memcpy(from, &a, sizeof a), std::memcpy(step, &difference, sizeof difference);
#pragma omp simd
  for (int i = 0; i < kLanes; ++i) from[i] = multiply_add(weight, step[i], from[i]);
  return load_floats(from);
}

inline Floats higher(Floats a, Floats b) { return a > b ? a : b; }

// The memory of one slot.
struct Scratch {
  int cells, pitch;                 // width + 1; floats from one channel of a row to the next
  std::vector<float> upper, lower;  // quarter-resolution rows [channels][pitch]; cell i at i + 1
  std::vector<float> best, thing, highest, segment, terms, line;
  std::vector<int> label, semantic;  // semantic: the best stuff, kNone where a thing is better
  std::vector<uint8_t> absent;       // the first accepted detection that does not cover the pixel; kNone
  int absent_row;                    // that covers nothing of the row

  explicit Scratch(const Params& p) : cells(p.width + 1) {
    // Enough to read whole vectors beyond the last cell; an odd number of cache lines, or channels evict each other.
    const int lines = (cells + 1 + 2 * kLanes + 15) / 16;
    pitch = 16 * (lines | 1);
    upper.resize(size_t(pitch) * (p.num_stuff + p.num_things));
    lower.resize(upper.size());
    const size_t places = size_t(kScale) * ((cells + kLanes - 1) / kLanes * kLanes);
    for (auto* row : {&best, &thing, &highest, &segment, &terms}) row->resize(places);
    line.resize(p.mask_size + 2);
    label.resize(places), semantic.resize(places), absent.resize(places);
  }
};

template <typename T>
void load_row(const Params& p, int image, int row, int pitch, float* out) {
  const int channels = p.num_stuff + p.num_things, width = p.width;
  const size_t plane = size_t(p.height) * width;
  const T* data = static_cast<const T*>(p.semantic) + image * channels * plane;
  const size_t first = size_t(clamped(row, 0, p.height - 1)) * width;
  if (p.semantic_layout == Layout::kNCHW) {
    for (int c = 0; c < channels; ++c) {
      const T* from = data + c * plane + first;
      float* to = out + size_t(c) * pitch + 1;
      for (int i = 0; i < width; ++i) to[i] = logit_of(from[i]);
    }
  } else {
    for (int start = 0; start < width; start += 16) {  // one cache line of every channel
      const int stop = smaller(start + 16, width);
      for (int c = 0; c < channels; ++c) {
        const T* from = data + first * channels + c;
        float* to = out + size_t(c) * pitch + 1;
        for (int i = start; i < stop; ++i) to[i] = logit_of(from[size_t(i) * channels]);
      }
    }
  }
  for (int c = 0; c < channels; ++c) {
    float* cells = out + size_t(c) * pitch;
    cells[0] = cells[1], cells[width + 1] = cells[width];
  }
}

// Four phases of kLanes cells, in the order of the pixels.
template <typename Vector, typename Value>
inline void interleave(const Vector (&phases)[kScale], Value* out) {
  for (int i = 0; i < kLanes; ++i) {
    for (int k = 0; k < kScale; ++k) out[kScale * i + k] = phases[k][i];
  }
}

// One channel of a row of pixels, at eight cells.
inline void expand(const float* upper, const float* lower, float weight, Floats (&values)[kScale]) {
  const Floats left = lerp(load_floats(upper), load_floats(lower), weight);
  const Floats right = lerp(load_floats(upper + 1), load_floats(lower + 1), weight);
  for (int k = 0; k < kScale; ++k) values[k] = lerp(left, right, phase_weight(k));
}

// label and best: of stuff, ties to the lowest. weight: of the lower row. is_wanted(place): whether that many pixels
// from there on are; the heuristic merge asks for nothing but `semantic` of them.
template <typename IsWanted>
void scan_channels(const Params& p, float weight, IsWanted is_wanted, Scratch& s) {
  const int channels = p.num_stuff + p.num_things;
  for (int cell = 0; cell < s.cells; cell += kLanes) {
    const int place = kScale * cell;
    if (!is_wanted(place)) continue;
    const float *upper = s.upper.data() + cell, *lower = s.lower.data() + cell;
    Floats best[kScale], thing[kScale], values[kScale];
    Ints label[kScale] = {}, semantic[kScale];
    for (int k = 0; k < kScale; ++k) best[k] = thing[k] = splat(-INFINITY);
    for (int c = 0; c < p.num_stuff; ++c, upper += s.pitch, lower += s.pitch) {
      expand(upper, lower, weight, values);
      for (int k = 0; k < kScale; ++k) {
        label[k] = values[k] > best[k] ? c - Ints{} : label[k];
        best[k] = higher(values[k], best[k]);
      }
    }
    for (int c = p.num_stuff; c < channels; ++c, upper += s.pitch, lower += s.pitch) {
      expand(upper, lower, weight, values);
      for (int k = 0; k < kScale; ++k) thing[k] = higher(values[k], thing[k]);
    }
    for (int k = 0; k < kScale; ++k) semantic[k] = thing[k] > best[k] ? kNone - Ints{} : label[k];
    interleave(semantic, &s.semantic[place]);
    if (p.heuristic) continue;
    interleave(best, &s.best[place]), interleave(thing, &s.thing[place]), interleave(label, &s.label[place]);
  }
}

// Detection `index` does not cover columns first .. stop - 1.
inline void note_absent(uint8_t index, int first, int stop, uint8_t* absent) {
#pragma omp simd
  for (int x = first; x < stop; ++x) absent[x] = absent[x] < index ? absent[x] : index;
}

// One instance competes for row y. Columns that it does not cover are noted in `absent`, unless other instances before
// it cover nothing of the row.
inline void compete(const Params& p, const Detection& d, int y, int width, float weight, Scratch& s) {
  const Window& window = d.window;
  const bool in_mask = y >= d.clip.first_y && y <= d.clip.last_y;
  const bool in_segment = y >= window.top && y <= window.segment_bottom;
  const int first = larger(window.left, 0);
  const int mask_stop = smaller(in_mask ? window.right + 1 : first, width);
  const int segment_stop = smaller(in_segment ? window.segment_right + 1 : first, width);
  const int stop = larger(mask_stop, segment_stop);
  if (d.index < s.absent_row) {
    note_absent(uint8_t(d.index), 0, smaller(first, width), s.absent.data() + 2);
    note_absent(uint8_t(d.index), larger(smaller(first, width), stop), width, s.absent.data() + 2);
  }
  if (stop <= first) return;

  float *terms = s.terms.data() + 2 + first, *segment = s.segment.data() + 2;
  if (mask_stop > first) mask_terms(d, y, s.line.data(), terms);
  for (int x = larger(mask_stop, first); x < stop; ++x) s.terms[2 + x] = 0.0f;
  if (segment_stop > first) {
    const size_t channel = size_t(p.num_stuff + d.category) * s.pitch;
    for (int cell = (first + 2) / kScale; cell <= (segment_stop + 1) / kScale; cell += kLanes) {
      Floats values[kScale];
      float pixels[kScale * kLanes];
      expand(&s.upper[channel + cell], &s.lower[channel + cell], weight, values);
      interleave(values, pixels);
      const int place = kScale * cell, count = smaller(kScale * kLanes, int(s.segment.size()) - place);
      std::memcpy(&s.segment[place], pixels, count * sizeof(float));
    }
  }
  for (int x = larger(segment_stop, first); x < stop; ++x) segment[x] = 0.0f;
  float *best = s.best.data() + 2, *highest = s.highest.data() + 2;
  int* label = s.label.data() + 2;
  const int own = p.num_stuff + d.index;
  terms -= first;
#pragma omp simd
  for (int x = first; x < stop; ++x) {
    const float logit = segment[x] + terms[x];
    label[x] = logit > best[x] ? own : label[x];
    best[x] = higher(logit, best[x]);
    highest[x] = higher(segment[x], highest[x]);
  }
}

// The labels of row y, columns 0 .. width - 1, into `out`.
inline void label_row(const Params& p, const std::vector<Detection>& accepted, int y, int width, float weight,
                      Scratch& s, uint8_t* out) {
  scan_channels(p, weight, [](int) { return true; }, s);
  std::fill(s.highest.begin(), s.highest.end(), accepted.empty() ? 0.0f : -INFINITY);
  const auto touches = [y](const Detection& d) { return y >= d.window.top && y <= d.window.last_row(); };
  const auto elsewhere = std::find_if_not(accepted.begin(), accepted.end(), touches);
  s.absent_row = elsewhere == accepted.end() ? kNone : elsewhere->index;
  std::fill(s.absent.begin(), s.absent.end(), uint8_t(s.absent_row));
  for (const Detection& detection : accepted) {
    if (touches(detection)) compete(p, detection, y, width, weight, s);
  }
  const int num_stuff = p.num_stuff, *labels = s.label.data() + 2;
  const float *best = s.best.data() + 2, *highest = s.highest.data() + 2, *thing = s.thing.data() + 2;
  const uint8_t* absent = s.absent.data() + 2;
#pragma omp simd
  for (int x = 0; x < width; ++x) {
    const int first_absent = absent[x], absent_label = num_stuff + first_absent;
    const bool competes = first_absent != kNone;
    const int label = competes & absent_wins(best[x], labels[x], absent_label) ? absent_label : labels[x];
    const float least = competes ? 0.0f : -INFINITY;  // of both maxima
    out[x] = uint8_t(thing[x] - higher(highest[x], least) > higher(best[x], least) ? kVoid : label);
  }
}

// visit(first, stop) for every run of set bits.
template <typename Visit>
void for_runs(const uint64_t* words, int count, Visit visit) {
  for (int w = 0; w < count; ++w) {
    for (uint64_t left = words[w]; left != 0;) {
      const int first = __builtin_ctzll(left);
      const uint64_t clear = ~(left >> first);  // never 0 but where first is
      const int stop = clear == 0 ? 64 : smaller(first + __builtin_ctzll(clear), 64);
      visit(64 * w + first, 64 * w + stop);
      left = stop == 64 ? 0 : left >> stop << stop;
    }
  }
}

// The heuristic merge's: the first accepted mask, else the best channel.
inline void first_masks_row(const Params& p, const std::vector<Detection>& accepted, int y, int width, float weight,
                            Scratch& s, uint8_t* out) {
  std::fill(out, out + width, uint8_t{kNone});
  for (auto d = accepted.rbegin(); d != accepted.rend(); ++d) {  // the first one is painted last
    if (y < d->clip.first_y || y > d->clip.last_y) continue;
    uint8_t* from = out + 64 * d->first_word();
    const int label = p.num_stuff + d->index;
    for_runs(d->bits_of(y), d->words(), [&](int first, int stop) { std::memset(from + first, label, stop - first); });
  }
  const auto is_open = [&](int place) {
    const int first = larger(place - 2, 0), stop = smaller(place - 2 + kScale * kLanes, width);
    return first < stop && std::memchr(out + first, kNone, stop - first) != nullptr;
  };
  scan_channels(p, weight, is_open, s);
  const int* semantic = s.semantic.data() + 2;
#pragma omp simd
  for (int x = 0; x < width; ++x) out[x] = out[x] == kNone ? uint8_t(semantic[x]) : out[x];
}

}  // namespace upsnet::panoptic_fusion
