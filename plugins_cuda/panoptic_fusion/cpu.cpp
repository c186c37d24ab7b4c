// The CPU front: it runs steps 1 (cpu_masks.h) and 2 (cpu_labels.h), and holds step 3.
// Panoptic fusion on the CPU: the arithmetic of kernel.cuh, image after image, in parallel over detections, classes and
// bands of rows.
//
// Why it is fast: nothing but bits of the size instances x H x W, the running maximum in vector registers
// (cpu_labels.h), counts per run of equal labels. COCO, 53 + 80 classes, 800 x 1344: 143 M interpolated logits at five
// vector operations for eight of them, 90 M operations or 10 ms of one core, is the floor; instances cost as much
// again.
// The heuristic merge paints the accepted masks, and interpolates 54 channels only where none is.
#include <new>

#include "common/exports.h"
#include "common/pool.h"
#include "panoptic_fusion/cpu_labels.h"

namespace upsnet::panoptic_fusion {
namespace {

constexpr int kBand = 8;  // rows of cells that a slot takes at a time

// What is known of a label's pixels.
struct Region {
  int area = 0, x1 = 1 << 30, y1 = 1 << 30, x2 = 0, y2 = 0;

  void add(const Region& other) {
    area += other.area;
    x1 = smaller(x1, other.x1), y1 = smaller(y1, other.y1), x2 = larger(x2, other.x2), y2 = larger(y2, other.y2);
  }
};

struct Statistics {
  std::vector<Region> regions;
  std::vector<int> votes;  // [detections, num_stuff]: pixels of the detection that are this stuff, semantically

  explicit Statistics(const Params& p) : regions(kVoid + 1), votes(size_t(p.detections) * p.num_stuff) {}

  void add(const Statistics& other) {
    for (size_t i = 0; i < regions.size(); ++i) regions[i].add(other.regions[i]);
    for (size_t i = 0; i < votes.size(); ++i) votes[i] += other.votes[i];
  }

  // Row y, run by run of equal labels and votes.
  void add_row(const Params& p, const uint8_t* labels, const int* semantic, int y, int width) {
    for (int x = 0, stop; x < width; x = stop) {
      const int label = labels[x], vote = semantic[x];
      const bool votes_count = label >= p.num_stuff && label != kVoid && !p.heuristic;
      stop = x + 1;
      while (stop < width && labels[stop] == label && (!votes_count || semantic[stop] == vote)) ++stop;
      regions[label].add({stop - x, x, y, stop, y + 1});
      if (votes_count && vote != kNone) votes[size_t(label - p.num_stuff) * p.num_stuff + vote] += stop - x;
    }
  }
};

// Labels of the pixels between rows of cells first - 1 .. stop - 1 and the next ones.
template <typename T>
void label_band(const Params& p, int image, const std::vector<Detection>& accepted, const Valid& valid, int first,
                int stop, Scratch& scratch, Statistics& statistics) {
  const int width = kScale * p.width;
  uint8_t* map = p.panoptic + size_t(image) * kScale * p.height * width;
  load_row<T>(p, image, first - 1, scratch.pitch, scratch.lower.data());
  for (int row = first; row < stop; ++row) {
    scratch.upper.swap(scratch.lower);
    load_row<T>(p, image, row, scratch.pitch, scratch.lower.data());
    for (int phase = 0; phase < kScale; ++phase) {
      const int y = kScale * row - 2 + phase;
      if (y < 0 || y >= valid.height) continue;
      uint8_t* labels = map + size_t(y) * width;
      const auto row = p.heuristic ? first_masks_row : label_row;
      row(p, accepted, y, valid.width, phase_weight(phase), scratch, labels);
      statistics.add_row(p, labels, scratch.semantic.data() + 2, y, valid.width);
    }
  }
}

template <typename T>
Statistics label_pixels(const Params& p, int image, const std::vector<Detection>& accepted, const Valid& valid,
                        const Pool& pool) {
  Statistics total(p);
  const int rows = (valid.height + 1) / kScale + 1;  // of cells: the last pixel's, and those before
  const int bands = valid.height > 0 && valid.width > 0 ? (rows + kBand - 1) / kBand : 0;
  struct Own {
    Scratch scratch;
    Statistics statistics;
    explicit Own(const Params& p) : scratch(p), statistics(p) {}
  };
  PerSlot<Own> slots(pool);
  for_each(pool, bands, 1, [&](int64_t band, int slot) {
    Own& own = slots.at(slot, p);
    const int first = int(band) * kBand, stop = smaller(first + kBand, rows);
    label_band<T>(p, image, accepted, valid, first, stop, own.scratch, own.statistics);
  });
  slots.each([&](const Own& own) { total.add(own.statistics); });
  return total;
}

// The majority rule: the stuff that takes the detection over, else its own label.
int target_of(const Params& p, const Statistics& statistics, int detection) {
  const auto votes = statistics.votes.begin() + size_t(detection) * p.num_stuff;
  const auto most = std::max_element(votes, votes + p.num_stuff);  // the first of equals
  const int label = p.num_stuff + detection;
  return is_outvoted(*most, statistics.regions[label].area) ? int(most - votes) : label;
}

// The table; returns label -> panoptic value.
std::vector<uint8_t> merge(const Params& p, int image, const Statistics& statistics) {
  const int rows = p.num_stuff + p.detections;
  std::vector<int> targets(kVoid + 1, kVoid);
  std::vector<Region> merged(kVoid + 1);
  for (int label = 0; label < rows; ++label) {
    targets[label] = label < p.num_stuff ? label : target_of(p, statistics, label - p.num_stuff);
    if (statistics.regions[label].area > 0) merged[targets[label]].add(statistics.regions[label]);
  }
  const float limit = network_area(p.stuff_area_limit, p.scales[image]);
  std::vector<uint8_t> numbers(kVoid + 1, 0);
  float* table = p.segments + size_t(image) * rows * 7;
  std::fill(table, table + size_t(rows) * 7, 0.0f);
  int used = 0;
  for (int label = 0; label < rows; ++label) {
    const Region& region = merged[label];
    const bool stuff = label < p.num_stuff;
    if (region.area == 0 || (stuff && float(region.area) < limit)) continue;
    const size_t d = size_t(image) * p.detections + (stuff ? 0 : label - p.num_stuff);
    const float values[7] = {stuff ? float(label) : float(p.num_stuff + int(p.classes[d])),
                             stuff ? 1.0f : p.scores[d],
                             float(region.area),
                             float(region.x1),
                             float(region.y1),
                             float(region.x2),
                             float(region.y2)};
    std::copy(values, values + 7, table + used * 7);
    numbers[label] = uint8_t(++used);
  }
  p.segment_count[image] = used;
  std::vector<uint8_t> values(kVoid + 1, 0);
  for (int label = 0; label < rows; ++label) values[label] = numbers[targets[label]];
  return values;
}

// Labels become panoptic values in place; padding becomes void.
void number_pixels(const Params& p, int image, const Valid& valid, const std::vector<uint8_t>& values,
                   const Pool& pool) {
  const int height = kScale * p.height, width = kScale * p.width;
  uint8_t* map = p.panoptic + size_t(image) * height * width;
  for_each(pool, height, 64, [&](int64_t y, int) {
    uint8_t* row = map + size_t(y) * width;
    const int stop = y < valid.height ? valid.width : 0;
    for (int x = 0; x < stop; ++x) row[x] = values[row[x]];
    std::fill(row + stop, row + width, uint8_t{0});
  });
}

Statistics label_pixels(const Params& p, int image, const std::vector<Detection>& accepted, const Valid& valid,
                        const Pool& pool) {
  switch (p.semantic_type) {
    case DType::kFloat32: return label_pixels<float>(p, image, accepted, valid, pool);
    case DType::kFloat16: return label_pixels<Half>(p, image, accepted, valid, pool);
    default: return label_pixels<BFloat16>(p, image, accepted, valid, pool);
  }
}

}  // namespace

int run_cpu(const Params& params, const Pool& pool) try {
  if (!is_supported(params)) return 1;
  for (int image = 0; image < params.batch; ++image) {
    const Valid valid = valid_of(params, image);
    const std::vector<Detection> accepted = accepted_detections(params, image, valid, pool);
    const Statistics statistics = label_pixels(params, image, accepted, valid, pool);
    number_pixels(params, image, valid, merge(params, image, statistics), pool);
  }
  return 0;
} catch (const std::bad_alloc&) { return 2; }  // cudaErrorMemoryAllocation

}  // namespace upsnet::panoptic_fusion

UPSNET_CPU_FRONT(panoptic_fusion)
