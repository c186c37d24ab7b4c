// The candidates of one row of scores, on a CPU core.
//
// They are found lazily, some hundreds at a time: a histogram over the upper bits of all scores says from which score
// on there are enough of them, one pass collects those, and only they are sorted. So 80 000 candidates of which 100 are
// kept cost two passes over 320 KB of scores, a nanosecond or two a score, and a sort of a few hundred.
#pragma once

#include <algorithm>
#include <functional>
#include <vector>

#include "nms/kernel.cuh"

namespace upsnet::nms {

// The candidates of one row, best first.
class Candidates {
 public:
  struct Batch {
    const uint64_t *first, *last;
  };

  Candidates(const float* scores, int count, float threshold) : scores_(scores), count_(count), threshold_(threshold) {
    if (count <= kFew) {
      collect_all();
      return;
    }
    // Several tables in turn: neighbouring scores often share a bin, and each increment would wait for the last.
    std::vector<uint32_t> tables(kTables * kBins);
    for (int i = 0; i < count; ++i) ++tables[i % kTables * kBins + bin_of(scores[i])];
    bins_.assign(tables.begin(), tables.begin() + kBins);
    for (int i = kBins; i < kTables * kBins; ++i) bins_[i % kBins] += tables[i];
  }

  // The next `wanted` candidates (fewer at the end, none when all are gone), in order; valid until the next call.
  Batch next(size_t wanted) {
    if (begin_ == keys_.size()) collect(wanted);
    uint64_t *const end = keys_.data() + keys_.size(), *const first = keys_.data() + begin_;
    uint64_t* const last = first + std::min(wanted, keys_.size() - begin_);
    if (last != end) std::nth_element(first, last, end, std::greater<>());
    std::sort(first, last, std::greater<>());
    begin_ += last - first;
    return {first, last};
  }

 private:
  static constexpr int kFew = 4096;  // scores that are sorted sooner than counted
  static constexpr int kShift = 20, kBins = 1 << (32 - kShift), kTables = 4;

  // Bin 0 is for what is no candidate: a score over a threshold is over -inf, whose order is far above bin 0.
  uint32_t bin_of(float score) const { return score > threshold_ ? order_of(score) >> kShift : 0; }

  void collect_all() {
    keys_.resize(count_ + 1);  // the last one takes the writes that do not count
    size_t filled = 0;
    for (int i = 0; i < count_; ++i) {
      keys_[filled] = key_of(scores_[i], threshold_, i);
      filled += keys_[filled] != 0;
    }
    keys_.resize(filled);
    lowest_bin_ = 1;
  }

  // keys_ = all keys in the next lower bins, as many bins as it takes for `wanted` keys.
  void collect(size_t wanted) {
    size_t found = 0;
    const int above = lowest_bin_;
    while (lowest_bin_ > 1 && found < wanted) found += bins_[--lowest_bin_];
    keys_.resize(found + 1);  // the last one takes the writes that do not count
    size_t filled = 0;
    const uint32_t low = lowest_bin_, width = above - lowest_bin_;
    for (int i = 0; i < count_ && filled < found; ++i) {
      keys_[filled] = key_of(scores_[i], threshold_, i);
      filled += bin_of(scores_[i]) - low < width;
    }
    keys_.resize(found);
    begin_ = 0;
  }

  const float* scores_;
  int count_;
  float threshold_;
  std::vector<uint32_t> bins_;
  int lowest_bin_ = kBins;  // keys in this bin and above have been collected
  std::vector<uint64_t> keys_;
  size_t begin_ = 0;  // keys_ before it have been handed out
};

}  // namespace upsnet::nms
