// Deformable convolution on a CPU: gather and matrix product, tile by tile, so that no column buffer leaves the caches.
//
// Features are brought to float NHWC (cpu_features.h; float NHWC ones are read where they lie). A slot then takes up to
// 96 output pixels at a time: where they sample is computed once for all channels; block after block of the taps x
// channels depth, it gathers the samples into a [pixels][depth] tile (L2: 96 x 256 floats) and multiplies it by weights
// packed in panels (cpu_product.h; L1: 256 x 16 floats) with a register-tiled kernel, which reaches 98 % of the core's
// peak. Floor at 256 -> 128 channels, 3x3, 200 x 336: 39.6 GFLOP, 0.19 s on two cores of 104 GFLOP/s each; the gather's
// four loads stand against 128 multiply-adds: a few per cent.
#include <algorithm>
#include <new>
#include <vector>

#include "common/buffer.h"
#include "common/exports.h"
#include "deform_conv/cpu_features.h"

namespace upsnet::deform_conv {
namespace {

// to_float(from_float<T>(value)), for Half without branches, so that loops over it vectorise.
template <typename T>
float rounded(float value) {
  return to_float(from_float<T>(value));
}

template <>
float rounded<Half>(float value) {
  const uint32_t bits = bits_of_float(value), sign = bits & 0x80000000u, magnitude = bits ^ sign;
  const auto all_ones_if = [](bool condition) { return uint32_t(-int32_t(condition)); };
  // Below 2^-14 halves lie 2^-24 apart, as floats do from 0.5 on; from there on 13 bits fewer than floats.
  const uint32_t small = bits_of_float((float_of_bits(magnitude) + 0.5f) - 0.5f);
  const uint32_t normal = (magnitude + 0xfffu + (magnitude >> 13 & 1u)) & ~0x1fffu;
  const uint32_t is_small = all_ones_if(magnitude < 0x38800000u);
  const uint32_t overflows = all_ones_if(magnitude >= 0x477ff000u), is_nan = all_ones_if(magnitude > 0x7f800000u);
  const uint32_t finite = (small & is_small) | (normal & ~is_small);
  return float_of_bits(sign | (finite & ~overflows) | (0x7f800000u & overflows) | (0x400000u & is_nan));
}

// What the pixels of a tile sample at one tap, for the channels of one offset group: Sample, member by member.
struct Samples {
  int32_t pixel[4][kPixels];
  float weight[4][kPixels];
};

// One slot's work.
template <typename T>
class Worker {
 public:
  explicit Worker(const Plan& plan)
      : plan_(plan),
        p_(plan.p),
        zeros_(plan.chunk, 0.0f),
        samples_(size_t(plan.p.offset_group) * plan.taps),
        columns_(allocate(plan.pixels * plan.row_stride)),
        sums_(allocate(plan.pixels * plan.sum_stride)) {
    std::fill_n(columns_.get(), plan.pixels * plan.row_stride, 0.0f);
  }

  // Pixels first .. first + plan.pixels of one image.
  void run(int64_t image, const Place& place, const float* packed, int64_t first) {
    count_ = int(std::min<int64_t>(plan_.pixels, plan_.plane - first));
    place_ = place;
    compute_samples(image, first);
    for (int group = 0; group < p_.group; ++group) {
      clear(group);
      accumulate(group, packed);
      write(group, image, first);
    }
  }

 private:
  void compute_samples(int64_t image, int64_t first) {
    int top[kPixels], left[kPixels];
    int row = int(first / p_.out_width), column = int(first % p_.out_width);
    for (int i = 0; i < count_; ++i) {
      top[i] = row * p_.stride[0] - p_.padding[0], left[i] = column * p_.stride[1] - p_.padding[1];
      if (++column == p_.out_width) column = 0, ++row;
    }
    for (int64_t index = 0; index < int64_t(p_.offset_group) * plan_.taps; ++index) {
      const int tap = int(index % plan_.taps);
      const int down = tap / p_.kernel_w * p_.dilation[0], right = tap % p_.kernel_w * p_.dilation[1];
      const int64_t place = image * p_.offset_group * plan_.taps + index;
      const float* shift_y = p_.offset + 2 * place * plan_.plane + first;
      const float* shift_x = shift_y + plan_.plane;
      const float* mask = p_.mask ? p_.mask + place * plan_.plane + first : nullptr;
      Samples& samples = samples_[index];
#pragma omp simd
      for (int i = 0; i < count_; ++i) {
        const float y = float(top[i] + down) + shift_y[i], x = float(left[i] + right) + shift_x[i];
        const Sample sample = sample_at(y, x, mask ? mask[i] : 1.0f, p_.height, p_.width);
        for (int k = 0; k < 4; ++k)
          samples.pixel[k][i] = place_(sample.pixel[k]), samples.weight[k][i] = sample.weight[k];
      }
    }
  }

  void clear(int group) {
    for (int i = 0; i < count_; ++i) {
      float* row = sums_.get() + i * plan_.sum_stride;
      for (int o = 0; o < plan_.group_outputs; ++o) row[o] = p_.bias ? p_.bias[group * plan_.group_outputs + o] : 0.0f;
    }
  }

  // Samples of `chunk` channels from `channel` on, for one tap, to columns `column` ...
  void gather(int tap, int channel, int chunk, int64_t column) {
    const Samples& samples = samples_[int64_t(channel / (p_.channels / p_.offset_group)) * plan_.taps + tap];
    for (int i = 0; i < count_; ++i) {
      const auto corner = [&](int k) {
        const int32_t pixel = samples.pixel[k][i];
        return pixel < 0 ? zeros_.data() : place_.features + int64_t(pixel) * p_.channels + channel;
      };
      const float *v0 = corner(0), *v1 = corner(1), *v2 = corner(2), *v3 = corner(3);
      const auto& all = samples.weight;
      const float weight[4] = {all[0][i], all[1][i], all[2][i], all[3][i]};
      float* __restrict out = columns_.get() + i * plan_.row_stride + column;
#pragma omp simd
      for (int c = 0; c < chunk; ++c) { out[c] = rounded<T>(blend(weight, v0[c], v1[c], v2[c], v3[c])); }
    }
  }

  void accumulate(int group, const float* packed) {
    int64_t depth_before = 0;
    const int64_t panel_size = plan_.group_depth * kColumns;
    const float* panels = packed + group * plan_.panels * panel_size;
    for (int segment = 0; segment < plan_.group_channels; segment += plan_.segment) {
      for (int low = 0; low < plan_.segment; low += plan_.chunk) {
        const int chunk = std::min(plan_.chunk, plan_.segment - low);
        for (int tap = 0; tap < plan_.taps; tap += plan_.taps_at_once) {
          const int taps = std::min(plan_.taps_at_once, plan_.taps - tap);
          for (int i = 0; i < taps; ++i) {
            gather(tap + i, group * plan_.group_channels + segment + low, chunk, int64_t(i) * chunk);
          }
          for (int64_t panel = 0; panel < plan_.panels; ++panel) {
            for (int row = 0; row < count_; row += kRows) {
              multiply(columns_.get() + row * plan_.row_stride, plan_.row_stride,
                       panels + panel * panel_size + depth_before * kColumns, chunk * taps,
                       sums_.get() + row * plan_.sum_stride + panel * kColumns, plan_.sum_stride);
            }
          }
          depth_before += int64_t(chunk) * taps;
        }
      }
    }
  }

  void write(int group, int64_t image, int64_t first) const {
    const int64_t channel = int64_t(group) * plan_.group_outputs;
    T* target = static_cast<T*>(p_.output) + image * plan_.plane * p_.out_channels;
    if (p_.x_layout == Layout::kNHWC) {
      for (int i = 0; i < count_; ++i) {
        narrow(sums_.get() + i * plan_.sum_stride, target + (first + i) * p_.out_channels + channel,
               plan_.group_outputs);
      }
    } else {
      transpose(sums_.get(), plan_.sum_stride, target + channel * plan_.plane + first, plan_.plane, count_,
                plan_.group_outputs);
    }
  }

  const Plan& plan_;
  const Params& p_;
  Place place_;
  int count_ = 0;
  const std::vector<float> zeros_;  // what a corner off the map reads
  std::vector<Samples> samples_;    // [offset group][tap]
  Buffer columns_, sums_;           // [plan.pixels][row_stride], [plan.pixels][sum_stride]
};

template <typename T>
void run(const Params& p, const Pool& pool) {
  const bool in_place = p.x_type == DType::kFloat32 && (p.x_layout == Layout::kNHWC || p.channels == 1);
  const Plan plan(p, pool.threads);
  const Buffer packed = allocate(p.group * plan.panels * plan.group_depth * kColumns);
  pack_weights<T>(plan, packed.get(), pool);
  PerSlot<Worker<T>> workers(pool);
  Buffer memory;  // of rings
  int rows = -1;
  for (int64_t image = 0; image < p.batch; ++image) {
    const auto run_tiles = [&](const Band& band, const Place& place) {
      for_each(pool, band.last_tile - band.first_tile, 1, [&](int64_t i, int slot) {
        workers.at(slot, plan).run(image, place, packed.get(), (band.first_tile + i) * plan.pixels);
      });
    };
    if (in_place) {
      const float* features = static_cast<const float*>(p.x) + image * p.height * p.width * p.channels;
      run_tiles({0, plan.tiles, 0, p.height}, {features});
      continue;
    }
    const std::vector<Band> bands = bands_of(plan, image, pool);
    int longest = 0;
    for (const Band& band : bands) longest = std::max(longest, band.high - band.low);
    if (longest > rows) memory.reset(), memory = allocate(int64_t(longest) * p.width * p.channels), rows = longest;
    Ring<T> ring(p, image, longest, memory.get());
    for (const Band& band : bands) run_tiles(band, ring.convert(band, pool));
  }
}

}  // namespace

int run_cpu(const Params& p, const Pool& pool) try {
  if (!is_supported(p)) return 1;
  if (p.batch == 0 || p.out_channels == 0 || p.out_height <= 0 || p.out_width <= 0) return 0;
  switch (p.x_type) {
    case DType::kFloat32: run<float>(p, pool); break;
    case DType::kFloat16: run<Half>(p, pool); break;
    case DType::kBFloat16: run<BFloat16>(p, pool); break;
  }
  return 0;
} catch (const std::bad_alloc&) { return 2; }  // cudaErrorMemoryAllocation

}  // namespace upsnet::deform_conv

UPSNET_CPU_FRONT(deform_conv)
