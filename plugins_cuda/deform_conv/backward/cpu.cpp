// The gradient of deformable convolution on a CPU: two matrix products and what lies between, tile by tile.
//
// A task (cpu_plan.h) goes through its images' output pixels, 96 at a time, and tap by tap: grad_output x weights gives
// the gradient of 96 samples of 32 channels; sample by sample, the corners are read once (cpu_samples.h), which gives
// the sample, its part of the gradients of offset and mask, and what the corners' own gradients get; grad_output^T x
// samples adds to the gradient of the weights. All of that stays in the caches: 12 KB of either side of the samples,
// the task's weights and their gradient 147 KB each at 128 outputs. Features and their gradient are float NHWC: in
// place where x is, else converted, as many images at a time as keep the threads busy.
//
// Floor at 256 -> 128 channels, 3x3, 200 x 336: 79.3 GFLOP, twice the forward's. A sample's 32 channels, 16 KB of
// corners' values and gradients per 32 pixels, stand against 2 x 32 x 128 multiply-adds: some 15 %.
#include <new>

#include "common/exports.h"
#include "deform_conv/backward/cpu_samples.h"

namespace upsnet::deform_conv_backward {
namespace {

using deform_conv::multiply;
using deform_conv::Point;
using deform_conv::point_at;

// Features and their gradient as S NHWC, of the images from `first` on.
template <typename S>
struct Maps {
  int64_t first;
  const S* features;
  S* gradient;
};

// A run of images: those from `image` on; where its gradient of the weights is.
template <typename S>
struct Run {
  int64_t image, last;
  S* weights;
};

// One slot's work.
template <typename T, typename S>
class Worker {
 public:
  static constexpr int kColumns = Plan<S>::kColumns;

  explicit Worker(const Plan<S>& plan)
      : plan_(plan),
        p_(plan.p),
        zeros_(kChunk, S(0)),
        nowhere_(kChunk, S(0)),
        points_(plan.taps),
        grad_(kPixels * plan.grad_stride, S(0)),
        grad_columns_(kPixels * round_up(kChunk, kColumns), S(0)),
        columns_(grad_columns_) {}

  // Output pixels first .. last - 1 of one image. moments: [taps][kMoments][pixels of a band], those from `first` on.
  void run(const Chunk& chunk, int64_t image, int64_t first, int64_t last, const Maps<S>& maps, const S* packed,
           S* grad_weights, S* moments, int64_t band) {
    for (int64_t tile = first; tile < last; tile += kPixels) {
      const int count = int(std::min<int64_t>(kPixels, last - tile));
      load(chunk.group, image, tile, count);
      find_points(chunk.offset_group, image, tile, count);
      for (int tap = 0; tap < plan_.taps; ++tap) {
        const int64_t place = (chunk.first_panel + int64_t(tap) * chunk.panels) * plan_.panel_size;
        multiply_weights(chunk, packed + place, count);
        visit_samples(chunk, points_[tap], image - maps.first, maps, count,
                      moments + int64_t(tap) * kMoments * band + (tile - first), band);
        multiply_samples(chunk, grad_weights + place, count);
      }
    }
  }

 private:
  // A tile of grad_output as [pixel][output of the group]; rows of outputs that there are not are zero.
  void load(int group, int64_t image, int64_t first, int count) {
    const int64_t outputs = plan_.outputs, channel = group * outputs;
    const T* grad = static_cast<const T*>(p_.grad_output) + image * plan_.plane * p_.out_channels;
    if (p_.x_layout == Layout::kNHWC) {
      for (int i = 0; i < count; ++i) {
        convert(grad + (first + i) * p_.out_channels + channel, grad_.data() + i * plan_.grad_stride, outputs);
      }
    } else {
      transpose(grad + channel * plan_.plane + first, plan_.plane, grad_.data(), plan_.grad_stride, outputs, count);
    }
  }

  void find_points(int offset_group, int64_t image, int64_t first, int count) {
    int top[kPixels], left[kPixels];
    int row = int(first / p_.out_width), column = int(first % p_.out_width);
    for (int i = 0; i < count; ++i) {
      top[i] = row * p_.stride[0] - p_.padding[0], left[i] = column * p_.stride[1] - p_.padding[1];
      if (++column == p_.out_width) column = 0, ++row;
    }
    for (int tap = 0; tap < plan_.taps; ++tap) {
      const int down = tap / p_.kernel_w * p_.dilation[0], right = tap % p_.kernel_w * p_.dilation[1];
      const int64_t index = (image * p_.offset_group + offset_group) * plan_.taps + tap;
      const S* shift_y = static_cast<const S*>(p_.offset) + 2 * index * plan_.plane + first;
      const S* shift_x = shift_y + plan_.plane;
      const S* mask = p_.mask ? static_cast<const S*>(p_.mask) + index * plan_.plane + first : nullptr;
      Points<S>& points = points_[tap];
#pragma omp simd
      for (int i = 0; i < count; ++i) {
        const S y = S(top[i] + down) + shift_y[i], x = S(left[i] + right) + shift_x[i];
        const Point<S> point = point_at(y, x, p_.height, p_.width);
        for (int k = 0; k < 4; ++k) points.pixel[k][i] = point.pixel[k];
        points.down[i] = point.down, points.right[i] = point.right, points.mask[i] = mask ? mask[i] : S(1);
      }
    }
  }

  // grad_columns [panel][pixel][column] = grad_output x weights.
  void multiply_weights(const Chunk& chunk, const S* panel, int count) {
    for (int i = 0; i < chunk.panels; ++i, panel += plan_.panel_size) {
      S* sums = grad_columns_.data() + int64_t(i) * kPixels * kColumns;
      for (int row = 0; row < count; row += kRows) {
        multiply<Order::kByRow, false>(grad_.data() + row * plan_.grad_stride, plan_.grad_stride, panel, plan_.outputs,
                                       sums + row * kColumns, kColumns);
      }
    }
  }

  void visit_samples(const Chunk& chunk, const Points<S>& points, int64_t image, const Maps<S>& maps, int count,
                     S* moments, int64_t band) {
    const int64_t channels = p_.channels, before = image * plan_.map * channels + chunk.channel;
    for (int i = 0; i < count; ++i) {
      S* column = columns_.data() + i * kColumns;
      if (points.is_off_the_map(i)) {
        for (int k = 0; k < chunk.panels; ++k) std::fill_n(column + k * kPixels * kColumns, kColumns, S(0));
        for (int k = 0; k < kMoments; ++k) moments[k * band + i] = 0;
        continue;
      }
      const S down = points.down[i], right = points.right[i], mask = points.mask[i];
      const S below = down * mask, above = mask - below;
      Corners<S> corners{{}, {}, {above - above * right, above * right, below - below * right, below * right}};
      for (int k = 0; k < 4; ++k) {
        const int32_t pixel = points.pixel[k][i];
        const int64_t place = before + pixel * channels;
        corners.value[k] = pixel < 0 ? zeros_.data() : maps.features + place;
        corners.gradient[k] = pixel < 0 ? nowhere_.data() : maps.gradient + place;
      }
      const Moments<S> sums = visit(corners, grad_columns_.data() + i * kColumns, column, chunk.count);
      moments[i] = mask * sums.down(right);
      moments[band + i] = mask * sums.right(down);
      moments[2 * band + i] = sums.sample(down, right);
    }
  }

  // grad_weights [panel][output][column] += grad_output^T x columns.
  void multiply_samples(const Chunk& chunk, S* sums, int count) {
    for (int i = 0; i < chunk.panels; ++i, sums += plan_.panel_size) {
      const S* panel = columns_.data() + int64_t(i) * kPixels * kColumns;
      for (int64_t row = 0; row < plan_.rows; row += kRows) {
        multiply<Order::kByDepth>(grad_.data() + row, plan_.grad_stride, panel, count, sums + row * kColumns, kColumns);
      }
    }
  }

  const Plan<S>& plan_;
  const Params& p_;
  const std::vector<S> zeros_;  // what a corner off the map reads
  std::vector<S> nowhere_;      // and where its gradient goes
  std::vector<Points<S>> points_;
  std::vector<S> grad_;                    // [pixel][grad_stride]
  std::vector<S> grad_columns_, columns_;  // [panel][pixel][column]
};

template <typename T, typename S>
class Gradient {
 public:
  Gradient(const Params& p, const Pool& pool) : p_(p), pool_(pool), plan_(p), workers_(pool) {}

  void run() {
    const int64_t weights = plan_.weights(), pixels = plan_.map * p_.channels, tasks = plan_.chunks.size();
    const Numbers<S> packed(weights), total(weights);
    std::fill_n(packed.get(), weights, S(0));
    deform_conv_backward::for_weights(plan_, pool_, [&](int64_t weight, int64_t place) {
      packed.get()[place] = widened<S>(static_cast<const T*>(p_.weight)[weight]);
    });
    clear(total.get(), weights);
    const int64_t most = round_up(p_.batch, plan_.run_images) / plan_.run_images;
    const int64_t runs_at_once =
        std::clamp<int64_t>((4 * pool_.threads - 1) / tasks + 1, 1, std::max<int64_t>(most, 1));
    const int64_t images_at_once = std::min<int64_t>(runs_at_once * plan_.run_images, p_.batch);
    const bool in_place = std::is_same_v<T, S> && (p_.x_layout == Layout::kNHWC || p_.channels == 1);
    const bool one_run = plan_.run_images >= p_.batch;  // whose part is all
    const Numbers<S> parts(one_run ? 0 : runs_at_once * weights);
    const Numbers<S> copy(in_place ? 0 : images_at_once * pixels), sums(in_place ? 0 : images_at_once * pixels);
    const int64_t of_a_pixel = images_at_once * tasks * plan_.taps * kMoments;
    // A run of several images adds them band by band: its bands must not follow from the number of threads.
    const int64_t counted = plan_.run_images > 1 ? std::min<int64_t>(plan_.run_images, p_.batch) : images_at_once;
    const int64_t numbers = std::max<int64_t>(counted * tasks * plan_.taps * kMoments, 1);
    band_ = std::min(plan_.plane, round_up(kBandBytes / int64_t(sizeof(S)) / numbers, kPixels));
    band_ = std::max<int64_t>(band_, std::min<int64_t>(plan_.plane, kPixels));
    moments_ = Numbers<S>(of_a_pixel * band_);
    for (int64_t first = 0; first < p_.batch; first += images_at_once) {
      const int64_t last = std::min<int64_t>(first + images_at_once, p_.batch);
      Maps<S> maps{first, copy.get(), sums.get()};
      if (in_place) {
        maps.features = static_cast<const S*>(p_.x) + first * pixels;
        maps.gradient = static_cast<S*>(p_.grad_x) + first * pixels;
      } else {
        read_features(first, last, copy.get());
      }
      clear(maps.gradient, (last - first) * pixels);
      if (!one_run) clear(parts.get(), runs_at_once * weights);
      std::vector<Run<S>> runs;
      for (int64_t image = first; image < last; image += plan_.run_images) {
        const int64_t after = std::min<int64_t>(image + plan_.run_images, last);
        runs.push_back({image, after, one_run ? total.get() : parts.get() + int64_t(runs.size()) * weights});
      }
      for (int64_t pixel = 0; pixel < plan_.plane; pixel += band_) run_band(runs, maps, packed.get(), pixel, last);
      for_ranges(one_run ? 0 : weights, [&](int64_t low, int64_t high) {
        for (const Run<S>& run : runs) {
#pragma omp simd
          for (int64_t i = low; i < high; ++i) total.get()[i] += run.weights[i];
        }
      });
      if (!in_place) write_gradient(first, last, maps.gradient);
    }
    deform_conv_backward::for_weights(plan_, pool_, [&](int64_t weight, int64_t place) {
      static_cast<T*>(p_.grad_weight)[weight] = narrowed<T>(total.get()[place]);
    });
  }

 private:
  // body(low, high) for ranges of 0 .. count - 1.
  template <typename Body>
  void for_ranges(int64_t count, const Body& body) const {
    for_each(pool_, (count + kLittle - 1) / kLittle, 1,
             [&](int64_t index, int) { body(index * kLittle, std::min<int64_t>((index + 1) * kLittle, count)); });
  }

  void clear(S* numbers, int64_t count) const {
    for_ranges(count, [&](int64_t low, int64_t high) { std::fill(numbers + low, numbers + high, S(0)); });
  }

  // One band of output pixels of all runs, and the gradients of its offsets and masks.
  void run_band(const std::vector<Run<S>>& runs, const Maps<S>& maps, const S* packed, int64_t first, int64_t last) {
    const int64_t after = std::min(first + band_, plan_.plane), chunks = plan_.chunks.size();
    const int64_t of_a_task = int64_t(plan_.taps) * kMoments * band_;
    const auto moments = [&](int64_t image, int64_t chunk) {
      return moments_.get() + ((image - maps.first) * chunks + chunk) * of_a_task;
    };
    for_each(pool_, int64_t(runs.size()) * chunks, 1, [&](int64_t task, int slot) {
      const Run<S>& run = runs[task / chunks];
      for (int64_t image = run.image; image < run.last; ++image) {
        workers_.at(slot, plan_)
            .run(plan_.chunks[task % chunks], image, first, after, maps, packed, run.weights,
                 moments(image, task % chunks), band_);
      }
    });
    const int64_t count = after - first, grain = kLittle / (band_ * kMoments) + 1;
    const int64_t places = int64_t(p_.offset_group) * plan_.taps;
    for_each(pool_, (last - maps.first) * places, grain, [&](int64_t index, int) {
      const int64_t image = maps.first + index / places, place = index % places, tap = place % plan_.taps;
      S* offsets = static_cast<S*>(p_.grad_offset) + 2 * (image * places + place) * plan_.plane + first;
      S* mask = p_.mask ? static_cast<S*>(p_.grad_mask) + (image * places + place) * plan_.plane + first : nullptr;
      S* const targets[kMoments] = {offsets, offsets + plan_.plane, mask};
      for (int k = 0; k < kMoments && targets[k]; ++k) {
        std::fill_n(targets[k], count, S(0));
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
          if (plan_.chunks[chunk].offset_group != place / plan_.taps) continue;
          const S* own = moments(image, chunk) + (tap * kMoments + k) * band_;
#pragma omp simd
          for (int64_t i = 0; i < count; ++i) targets[k][i] += own[i];
        }
      }
    });
  }

  // body(image, its first pixel, count) for blocks of the pixels of maps.
  template <typename Body>
  void for_blocks(int64_t first, int64_t last, const Body& body) const {
    constexpr int64_t kBlock = 64;
    const int64_t blocks = (plan_.map + kBlock - 1) / kBlock, grain = kLittle / (kBlock * p_.channels) + 1;
    for_each(pool_, (last - first) * blocks, grain, [&](int64_t index, int) {
      const int64_t pixel = index % blocks * kBlock;
      body(first + index / blocks, pixel, std::min(kBlock, plan_.map - pixel));
    });
  }

  void read_features(int64_t first, int64_t last, S* copy) const {
    const int64_t channels = p_.channels;
    for_blocks(first, last, [&](int64_t image, int64_t pixel, int64_t count) {
      const T* source = static_cast<const T*>(p_.x) + image * plan_.map * channels;
      S* target = copy + ((image - first) * plan_.map + pixel) * channels;
      if (p_.x_layout == Layout::kNHWC) {
        convert(source + pixel * channels, target, count * channels);
      } else {
        transpose(source + pixel, plan_.map, target, channels, channels, count);
      }
    });
  }

  void write_gradient(int64_t first, int64_t last, const S* sums) const {
    const int64_t channels = p_.channels;
    for_blocks(first, last, [&](int64_t image, int64_t pixel, int64_t count) {
      const S* source = sums + ((image - first) * plan_.map + pixel) * channels;
      T* target = static_cast<T*>(p_.grad_x) + image * plan_.map * channels;
      if (p_.x_layout == Layout::kNHWC) {
        convert(source, target + pixel * channels, count * channels);
      } else {
        transpose(source, channels, target + pixel, plan_.map, count, channels);
      }
    });
  }

  const Params& p_;
  const Pool& pool_;
  const Plan<S> plan_;
  PerSlot<Worker<T, S>> workers_;
  int64_t band_ = 0;    // output pixels
  Numbers<S> moments_;  // [image][chunk][tap][kMoments][band]
};

}  // namespace

int run_cpu(const Params& p, const Pool& pool) try {
  if (!deform_conv::is_supported(deform_conv::geometry_of(p, p.out_channels, p.group, p.kernel_h, p.kernel_w)))
    return 1;
  if (p.out_height < 0 || p.out_width < 0) return 1;
  switch (p.x_type) {
    case DType::kFloat32: Gradient<float, float>(p, pool).run(); break;
    case DType::kFloat16: Gradient<Half, float>(p, pool).run(); break;
    case DType::kBFloat16: Gradient<BFloat16, float>(p, pool).run(); break;
    default: Gradient<double, double>(p, pool).run();
  }
  return 0;
} catch (const std::bad_alloc&) { return 2; }  // cudaErrorMemoryAllocation

}  // namespace upsnet::deform_conv_backward

UPSNET_CPU_FRONT(deform_conv_backward)
