// Deformable convolution's features on a CPU, as float NHWC.
//
// The samples of neighbouring output pixels lie near each other, so what is not float NHWC already is converted a band
// of output pixels at a time, into a ring of the rows that the band samples: every row once, and into memory of some
// megabytes that stays in the caches. Offsets that point across the map make the ring as long as the map.
#pragma once

#include <cmath>
#include <vector>

#include "common/buffer.h"
#include "deform_conv/cpu_product.h"

namespace upsnet::deform_conv {
namespace {

constexpr int64_t kCopy = 1 << 20;  // a band has as many numbers as this, or what keeps the threads busy

// A run of tiles of output pixels, and the rows of the map that they sample.
struct Band {
  int64_t first_tile, last_tile;  // last_tile: the one after
  int low, high;                  // high: the row after
};

// Widens the band by the rows that its pixels sample.
inline void find_rows(const Plan& plan, int64_t image, Band& band) {
  const Params& p = plan.p;
  const int64_t first = band.first_tile * plan.pixels, last = std::min(band.last_tile * plan.pixels, plan.plane);
  const float height = float(p.height);
  float lowest = height, highest = -1.0f;
  for (int64_t index = 0; index < int64_t(p.offset_group) * plan.taps; ++index) {
    const int down = int(index % plan.taps) / p.kernel_w * p.dilation[0];
    const float* shift = p.offset + 2 * (image * p.offset_group * plan.taps + index) * plan.plane;
    for (int64_t place = first, stop; place < last; place = stop) {
      const int64_t row = place / p.out_width;
      stop = std::min((row + 1) * p.out_width, last);
      const float top = float(int(row) * p.stride[0] - p.padding[0] + down);
#pragma omp simd reduction(min : lowest) reduction(max : highest)
      for (int64_t i = place; i < stop; ++i) {
        const float y = top + shift[i];
        const bool inside = y > -1.0f && y < height;  // as in sample_at
        lowest = std::min(lowest, inside ? y : height);
        highest = std::max(highest, inside ? y : -1.0f);
      }
    }
  }
  band.low = std::min(band.low, std::max(0, int(std::floor(lowest))));
  band.high = std::max(band.high, std::min(p.height, int(std::floor(highest)) + 2));
}

// The bands of an image, whose rows never go back: a row that a later band needs is among those of the ones before it.
inline std::vector<Band> bands_of(const Plan& plan, int64_t image, const Pool& pool) {
  const int64_t tiles = std::max<int64_t>(8 * pool.threads, kCopy / (int64_t(plan.pixels) * plan.p.channels));
  if (tiles >= plan.tiles) return {{0, plan.tiles, 0, plan.p.height}};
  std::vector<Band> bands;
  for (int64_t first = 0; first < plan.tiles; first += tiles) {
    bands.push_back({first, std::min(first + tiles, plan.tiles), plan.p.height, 0});
  }
  for_each(pool, bands.size(), 1, [&](int64_t i, int) { find_rows(plan, image, bands[i]); });
  for (size_t i = 1; i < bands.size(); ++i) bands[i].high = std::max(bands[i].high, bands[i - 1].high);
  for (size_t i = bands.size() - 1; i > 0; --i) bands[i - 1].low = std::min(bands[i - 1].low, bands[i].low);
  for (Band& band : bands) band.low = std::min(band.low, band.high);
  return bands;
}

// Where the pixels of a map are, those of some rows: from `split` on at pixel - after, before it at pixel - before.
struct Place {
  const float* features = nullptr;  // [pixel][channel]
  uint32_t split = UINT32_MAX, before = 0, after = 0;

  int32_t operator()(int32_t pixel) const {
    const uint32_t number = uint32_t(pixel), start = number >= split ? after : before;
    return pixel < 0 ? pixel : int32_t(number - start);
  }
};

// The rows of one image, converted to [row % rows][column][channel].
template <typename T>
class Ring {
 public:
  Ring(const Params& p, int64_t image, int rows, float* memory)
      : p_(p),
        source_(static_cast<const T*>(p.x) + image * p.height * p.width * p.channels),
        rows_(std::max(rows, 1)),
        memory_(memory) {}

  // Converts what the band's rows lack. Rows before them are lost.
  Place convert(const Band& band, const Pool& pool) {
    const int64_t channels = p_.channels, plane = int64_t(p_.height) * p_.width;
    constexpr int64_t kBlock = 64;  // pixels
    const int first_row = std::max(ready_, band.low);
    const int64_t blocks = (p_.width + kBlock - 1) / kBlock, grain = kLittle / (kBlock * channels) + 1;
    for_each(pool, std::max(0, band.high - first_row) * blocks, grain, [&](int64_t index, int) {
      const int64_t row = first_row + index / blocks, column = index % blocks * kBlock;
      const int64_t count = std::min(kBlock, p_.width - column), pixel = row * p_.width + column;
      float* target = memory_ + (row % rows_ * p_.width + column) * channels;
      if (p_.x_layout == Layout::kNHWC) {
        widen(source_ + pixel * channels, target, count * channels);
      } else {
        transpose(source_ + pixel, plane, target, channels, channels, count);
      }
    });
    ready_ = std::max(ready_, band.high);
    const uint32_t length = uint32_t(rows_) * p_.width, round = band.low / rows_;
    return {memory_, (round + 1) * length, round * length, (round + 1) * length};
  }

 private:
  const Params& p_;
  const T* source_;
  const int rows_;
  float* memory_;
  int ready_ = 0;  // rows before it have been converted
};

}  // namespace
}  // namespace upsnet::deform_conv
