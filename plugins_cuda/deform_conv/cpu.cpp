// Deformable convolution on a CPU: gather and matrix product, tile by tile, so that no column buffer leaves the caches.
//
// Features are brought to float NHWC once (float NHWC ones are read where they lie). A thread then takes 96 output
// pixels at a time: where they sample is computed once for all channels; block after block of the taps x channels
// depth, it gathers the samples into a [pixels][depth] tile (L2: 96 x 256 floats) and multiplies it by weights packed
// in panels (L1: 256 x 16 floats) with a register-tiled kernel, which reaches 98 % of the core's peak. Floor at
// 256 -> 128 channels, 3x3, 200 x 336: 39.6 GFLOP, 0.19 s on two cores of 104 GFLOP/s each; the gather's four loads
// stand against 128 multiply-adds: a few per cent.
#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "common/exports.h"
#include "common/pool.h"
#include "deform_conv/kernel.cuh"

namespace upsnet::deform_conv {
namespace {

// The register tile: kRows pixels x two vectors of output channels.
#ifdef __AVX512F__
constexpr int kWidth = 16, kRows = 12;  // 24 sums of 32 registers
#elif defined(__AVX__)
constexpr int kWidth = 8, kRows = 6;  // 12 sums of 16 registers
#else
constexpr int kWidth = 4, kRows = 6;
#endif
constexpr int kColumns = 2 * kWidth;
constexpr int kPixels = 96;
constexpr int kDepth = 256;
static_assert(kPixels % kRows == 0);
typedef float Vector __attribute__((vector_size(kWidth * sizeof(float)), aligned(sizeof(float)), may_alias));

Vector& vector_at(float* place) { return *reinterpret_cast<Vector*>(place); }
const Vector& vector_at(const float* place) { return *reinterpret_cast<const Vector*>(place); }

// sums [kRows][kColumns] += rows [kRows][depth] x panel [depth][kColumns]
void multiply(const float* rows, int64_t row_stride, const float* panel, int depth, float* sums, int64_t sum_stride) {
  Vector sum[kRows][2];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    sum[r][0] = vector_at(sums + r * sum_stride);
    sum[r][1] = vector_at(sums + r * sum_stride + kWidth);
  }
  for (int k = 0; k < depth; ++k) {
    const Vector first = vector_at(panel + k * kColumns), second = vector_at(panel + k * kColumns + kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const float value = rows[r * row_stride + k];
      sum[r][0] += value * first;
      sum[r][1] += value * second;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    vector_at(sums + r * sum_stride) = sum[r][0];
    vector_at(sums + r * sum_stride + kWidth) = sum[r][1];
  }
}

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

// Memory aligned to a cache line.
struct Free {
  void operator()(float* memory) const { ::operator delete[](memory, std::align_val_t{64}); }
};
using Buffer = std::unique_ptr<float[], Free>;
Buffer allocate(int64_t count) { return Buffer(new (std::align_val_t{64}) float[count]); }

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// [channels][pixels] or [pixels][channels] of T -> [pixels][channels] of float.
template <typename T>
void to_nhwc(const Params& p, float* target, const Pool& pool) {
  const int64_t plane = int64_t(p.height) * p.width, channels = p.channels;
  constexpr int kBlock = 64;
  const int64_t blocks = (plane + kBlock - 1) / kBlock;
  const T* source = static_cast<const T*>(p.x);
  for_each(pool, p.batch * blocks, 8, [&](int64_t block, int) {
    const int64_t image = block / blocks * plane * channels, first = block % blocks * kBlock;
    const int64_t last = std::min(first + kBlock, plane);
    if (p.x_layout == Layout::kNHWC) {
      for (int64_t i = image + first * channels; i < image + last * channels; ++i) target[i] = to_float(source[i]);
      return;
    }
    for (int64_t low = 0; low < channels; low += kWidth) {  // whole cache lines on both sides
      const int64_t high = std::min<int64_t>(low + kWidth, channels);
      for (int64_t pixel = first; pixel < last; ++pixel) {
        float* row = target + image + pixel * channels;
        for (int64_t c = low; c < high; ++c) row[c] = to_float(source[image + c * plane + pixel]);
      }
    }
  });
}

// The sizes that everything below shares.
struct Plan {
  const Params& p;
  int taps = p.kernel_h * p.kernel_w;
  int segment = segment_channels(p);  // channels that share both groups
  int group_channels = p.channels / p.group;
  int group_outputs = p.out_channels / p.group;
  int64_t group_depth = int64_t(group_channels) * taps;
  int64_t panels = round_up(group_outputs, kColumns) / kColumns;  // of one group
  int64_t sum_stride = panels * kColumns;
  int chunk = std::min(segment, kDepth);  // channels of a block of depth
  int taps_at_once = std::min(taps, kDepth / chunk);
  int64_t row_stride = round_up(int64_t(chunk) * taps_at_once, 16) + 16;  // rows in different sets of L1
};

// Weights as [group][panel][depth][kColumns]; depth runs over segments, chunks, taps, channels of the chunk.
template <typename T>
void pack_weights(const Plan& plan, float* packed, const Pool& pool) {
  const Params& p = plan.p;
  const T* weight = static_cast<const T*>(p.weight);
  for_each(pool, p.group * plan.panels, 1, [&](int64_t panel, int) {
    const int64_t group = panel / plan.panels, first = panel % plan.panels * kColumns;
    float* out = packed + panel * plan.group_depth * kColumns;
    for (int segment = 0; segment < plan.group_channels; segment += plan.segment) {
      for (int low = 0; low < plan.segment; low += plan.chunk) {
        const int high = std::min(low + plan.chunk, plan.segment);
        for (int tap = 0; tap < plan.taps; ++tap) {
          for (int channel = segment + low; channel < segment + high; ++channel, out += kColumns) {
            for (int column = 0; column < kColumns; ++column) {
              const int64_t row = (group * plan.group_outputs + first + column) * plan.group_channels + channel;
              out[column] = first + column < plan.group_outputs ? to_float(weight[row * plan.taps + tap]) : 0.0f;
            }
          }
        }
      }
    }
  });
}

// One slot's work.
template <typename T>
class Worker {
 public:
  Worker(const Plan& plan, const float* features, const float* packed, const float* zeros)
      : plan_(plan),
        p_(plan.p),
        features_(features),
        packed_(packed),
        zeros_(zeros),
        samples_(size_t(plan.p.offset_group) * plan.taps * kPixels),
        columns_(allocate(kPixels * plan.row_stride)),
        sums_(allocate(kPixels * plan.sum_stride)) {
    std::fill_n(columns_.get(), kPixels * plan.row_stride, 0.0f);
  }

  // Pixels first .. first + kPixels of one image.
  void run(int64_t image, int64_t first) {
    const int64_t plane = int64_t(p_.out_height) * p_.out_width;
    count_ = int(std::min<int64_t>(kPixels, plane - first));
    compute_samples(image, first);
    image_ = features_ + image * p_.height * p_.width * p_.channels;
    for (int group = 0; group < p_.group; ++group) {
      clear(group);
      accumulate(group);
      write(group, image, first, plane);
    }
  }

 private:
  void compute_samples(int64_t image, int64_t first) {
    Sample* sample = samples_.data();
    for (int offset_group = 0; offset_group < p_.offset_group; ++offset_group) {
      for (int tap = 0; tap < plan_.taps; ++tap, sample += kPixels) {
        for (int i = 0; i < count_; ++i) {
          const int64_t place = first + i;
          sample[i] = sample_of(p_, int32_t(image), offset_group, tap, int32_t(place / p_.out_width),
                                int32_t(place % p_.out_width));
        }
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
    const Sample* samples =
        samples_.data() + (int64_t(channel / (p_.channels / p_.offset_group)) * plan_.taps + tap) * kPixels;
    for (int i = 0; i < count_; ++i) {
      const Sample& sample = samples[i];
      const auto corner = [&](int k) {
        return sample.pixel[k] < 0 ? zeros_ : image_ + int64_t(sample.pixel[k]) * p_.channels + channel;
      };
      const float *v0 = corner(0), *v1 = corner(1), *v2 = corner(2), *v3 = corner(3);
      float* __restrict out = columns_.get() + i * plan_.row_stride + column;
#pragma omp simd
      for (int c = 0; c < chunk; ++c) { out[c] = rounded<T>(blend(sample.weight, v0[c], v1[c], v2[c], v3[c])); }
    }
  }

  void accumulate(int group) {
    int64_t depth_before = 0;
    const int64_t panel_size = plan_.group_depth * kColumns;
    const float* panels = packed_ + group * plan_.panels * panel_size;
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

  void write(int group, int64_t image, int64_t first, int64_t plane) const {
    const int64_t channel = int64_t(group) * plan_.group_outputs;
    T* target = static_cast<T*>(p_.output) + image * plane * p_.out_channels;
    const float* sums = sums_.get();
    if (p_.x_layout == Layout::kNHWC) {
      for (int i = 0; i < count_; ++i) {
        T* out = target + (first + i) * p_.out_channels + channel;
        for (int o = 0; o < plan_.group_outputs; ++o) out[o] = from_float<T>(sums[i * plan_.sum_stride + o]);
      }
    } else {
      for (int o = 0; o < plan_.group_outputs; ++o) {
        T* out = target + (channel + o) * plane + first;
        for (int i = 0; i < count_; ++i) out[i] = from_float<T>(sums[i * plan_.sum_stride + o]);
      }
    }
  }

  const Plan& plan_;
  const Params& p_;
  const float *features_, *packed_, *zeros_, *image_ = nullptr;
  int count_ = 0;
  std::vector<Sample> samples_;  // [offset group][tap][pixel]
  Buffer columns_, sums_;        // [kPixels][row_stride], [kPixels][sum_stride]
};

template <typename T>
void run(const Params& p, const Pool& pool) {
  const Plan plan{p};
  Buffer converted;
  const float* features = static_cast<const float*>(p.x);
  if (p.x_type != DType::kFloat32 || (p.x_layout == Layout::kNCHW && p.channels > 1)) {
    converted = allocate(int64_t(p.batch) * p.channels * p.height * p.width);
    to_nhwc<T>(p, converted.get(), pool);
    features = converted.get();
  }
  const Buffer packed = allocate(p.group * plan.panels * plan.group_depth * kColumns);
  pack_weights<T>(plan, packed.get(), pool);
  const std::vector<float> zeros(plan.chunk, 0.0f);
  const int64_t tiles = (int64_t(p.out_height) * p.out_width + kPixels - 1) / kPixels;
  PerSlot<Worker<T>> workers(pool);
  for_each(pool, p.batch * tiles, 1, [&](int64_t i, int slot) {
    workers.at(slot, plan, features, packed.get(), zeros.data()).run(i / tiles, i % tiles * kPixels);
  });
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
