// The gradient of deformable convolution on a CPU: how its work is divided, and weights in panels.
//
// A chunk is up to 32 channels that share their group of weights and of offsets. Of the gradients, that of the features
// and that of the weights have a part of their own for every chunk; of images, those of a run share one. So a run's
// chunk is a task that nobody else writes to, and which tasks there are follows from the sizes alone: whoever takes
// them, and however many do, every sum adds the same numbers in the same order.
#pragma once

#include <algorithm>
#include <vector>

#include "common/buffer.h"
#include "common/pool.h"
#include "common/transpose.h"
#include "deform_conv/backward/launch.h"
#include "deform_conv/backward/point.h"
#include "deform_conv/cpu_tile.h"

namespace upsnet::deform_conv_backward {
namespace {

using deform_conv::kRows;
using deform_conv::Order;
using deform_conv::RegisterTile;
using deform_conv::round_up;

constexpr int kPixels = 96;          // of a tile of output pixels
constexpr int kChunk = 32;           // channels
constexpr int kRunPixels = 4096;     // output pixels of a run of images, where there are that many
constexpr int kBandBytes = 1 << 24;  // of what is kept for the gradients of offsets and masks
constexpr int kLittle = 1 << 15;     // numbers to move that are not worth another thread
constexpr int kMoments = 3;          // numbers of a tap: down, right, mask
static_assert(kPixels % kRows == 0);

// Memory for a count of S, not set to anything.
template <typename S>
class Numbers {
 public:
  Numbers() = default;
  explicit Numbers(int64_t count) : memory_(allocate(count * int64_t(sizeof(S) / sizeof(float)))) {}
  S* get() const { return reinterpret_cast<S*>(memory_.get()); }

 private:
  Buffer memory_;
};

// Rows of T to rows of S, or back.
template <typename Source, typename Target>
void convert(const Source* source, Target* target, int64_t count) {
  if constexpr (std::is_same_v<Source, Target>)
    std::copy_n(source, count, target);
  else if constexpr (std::is_same_v<Target, float>)
    widen(source, target, count);
  else
    narrow(source, target, count);
}

struct Chunk {
  int channel, count, panels;  // panels: of kColumns channels, of each tap
  int group, offset_group;
  int64_t first_panel;  // of weights
};

template <typename S>
struct Plan {
  static constexpr int kColumns = RegisterTile<S>::kColumns;

  explicit Plan(const Params& params) : p(params) {
    const int segment =
        deform_conv::segment_channels(deform_conv::geometry_of(p, p.out_channels, p.group, p.kernel_h, p.kernel_w));
    for (int channel = 0; channel < p.channels;) {
      const int count = std::min(kChunk, segment - channel % segment), columns = int(round_up(count, kColumns));
      const int group = channel / (p.channels / p.group), offsets = channel / (p.channels / p.offset_group);
      chunks.push_back({channel, count, columns / kColumns, group, offsets, panels});
      panels += int64_t(taps) * columns / kColumns;
      channel += count;
    }
    run_images = int(std::clamp<int64_t>(kRunPixels / std::max<int64_t>(plane, 1) + 1, 1, std::max(p.batch, 1)));
  }

  int64_t weights() const { return panels * panel_size; }  // that all panels have

  const Params& p;
  int taps = p.kernel_h * p.kernel_w;
  int64_t plane = int64_t(p.out_height) * p.out_width, map = int64_t(p.height) * p.width;
  int outputs = p.out_channels / p.group;  // of a group
  int64_t rows = round_up(outputs, kRows);
  int64_t grad_stride = round_up(rows, 16) + 16;  // of a tile of grad_output; its rows in different sets of L1
  int64_t panel_size = rows * kColumns;
  int64_t panels = 0;
  std::vector<Chunk> chunks;
  int run_images;
};

// visit(place among the weights [O][D][taps], place among the panels [chunk][tap][panel][row][column]) for every
// weight. Panels are divided among the threads.
template <typename S, typename Visit>
void for_weights(const Plan<S>& plan, const Pool& pool, const Visit& visit) {
  constexpr int kColumns = Plan<S>::kColumns;
  const int depth = plan.p.channels / plan.p.group;
  const int64_t grain = kLittle / (int64_t(kChunk) * plan.taps * std::max(plan.outputs, 1)) + 1;
  for_each(pool, plan.chunks.size(), grain, [&](int64_t index, int) {
    const Chunk& chunk = plan.chunks[index];
    for (int o = 0; o < plan.outputs; ++o) {
      const int64_t row = (int64_t(chunk.group) * plan.outputs + o) * depth + chunk.channel % depth;
      for (int c = 0; c < chunk.count; ++c) {
        for (int tap = 0; tap < plan.taps; ++tap) {
          const int64_t panel = chunk.first_panel + tap * chunk.panels + c / kColumns;
          visit((row + c) * plan.taps + tap, panel * plan.panel_size + o * kColumns + c % kColumns);
        }
      }
    }
  });
}

}  // namespace
}  // namespace upsnet::deform_conv_backward
