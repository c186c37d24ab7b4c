// Deformable convolution's matrix product on a CPU: sizes, and weights packed in panels.
#pragma once

#include <algorithm>

#include "common/pool.h"
#include "common/transpose.h"
#include "deform_conv/cpu_tile.h"
#include "deform_conv/kernel.cuh"

namespace upsnet::deform_conv {
namespace {

constexpr int kColumns = RegisterTile<float>::kColumns;
constexpr int kPixels = 96;
constexpr int kDepth = 256;
constexpr int kLittle = 1 << 15;  // numbers to copy that are not worth another thread
static_assert(kPixels % kRows == 0);

// The sizes that everything below shares.
struct Plan {
  Plan(const Params& params, int threads) : p(params) {
    const int64_t share = round_up(plane, threads) / threads;
    pixels = int(std::min<int64_t>(kPixels, round_up(share, kRows)));
    tiles = round_up(plane, pixels) / pixels;
  }

  const Params& p;
  int taps = p.kernel_h * p.kernel_w;
  int64_t plane = int64_t(p.out_height) * p.out_width;
  int segment = segment_channels(p);  // channels that share both groups
  int group_channels = p.channels / p.group;
  int group_outputs = p.out_channels / p.group;
  int64_t group_depth = int64_t(group_channels) * taps;
  int64_t panels = round_up(group_outputs, kColumns) / kColumns;  // of one group
  int64_t sum_stride = panels * kColumns;
  int chunk = std::min(segment, kDepth);  // channels of a block of depth
  int taps_at_once = std::min(taps, kDepth / chunk);
  int pixels;     // of a tile: fewer where a slot's share of an image is less
  int64_t tiles;  // of an image
  int64_t row_stride = round_up(int64_t(chunk) * taps_at_once, 16) + 16;  // rows in different sets of L1
};

// weight [outputs][chunk][taps], rows `pitch` apart -> out [taps][chunk][kColumns], zeros beyond the outputs.
template <typename T>
void pack_chunk(const T* weight, int64_t pitch, int outputs, int chunk, int taps, float* out) {
  constexpr int kBlock = 32;
  float turned[kBlock * kColumns] = {};
  int channel = 0, tap = 0;
  for (int first = 0; first < chunk * taps; first += kBlock) {
    const int count = std::min(kBlock, chunk * taps - first);
    transpose(weight + first, pitch, turned, kColumns, outputs, count);
    for (int i = 0; i < count; ++i) {
      std::memcpy(out + (int64_t(tap) * chunk + channel) * kColumns, turned + i * kColumns, kColumns * sizeof(float));
      if (++tap == taps) tap = 0, ++channel;
    }
  }
}

// Weights as [group][panel][depth][kColumns]; depth runs over segments, chunks, taps, channels of the chunk.
template <typename T>
void pack_weights(const Plan& plan, float* packed, const Pool& pool) {
  const Params& p = plan.p;
  const int64_t panel_size = plan.group_depth * kColumns;
  for_each(pool, p.group * plan.panels, std::max<int64_t>(1, kLittle / panel_size), [&](int64_t panel, int) {
    const int64_t group = panel / plan.panels, first = panel % plan.panels * kColumns;
    const int outputs = int(std::min<int64_t>(kColumns, plan.group_outputs - first));
    const T* weight = static_cast<const T*>(p.weight) + (group * plan.group_outputs + first) * plan.group_depth;
    float* out = packed + panel * panel_size;
    for (int segment = 0; segment < plan.group_channels; segment += plan.segment) {
      for (int low = 0; low < plan.segment; low += plan.chunk) {
        const int chunk = std::min(plan.chunk, plan.segment - low);
        pack_chunk(weight + int64_t(segment + low) * plan.taps, plan.group_depth, outputs, chunk, plan.taps, out);
        out += int64_t(chunk) * plan.taps * kColumns;
      }
    }
  });
}

}  // namespace
}  // namespace upsnet::deform_conv
