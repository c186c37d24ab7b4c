// The gradient of the features in an order that is always the same: every number of it has one lane that adds to it.
//
// A block owns 8 x 16 pixels x 32 channels, in shared memory; a warp a row of them, a lane a channel. The block looks
// at all samples of its image, 256 at a time, and lists in order those with a corner in its pixels; then every warp
// goes through the list. Samples are looked at as often as there are blocks: at 200 x 336 and 256 channels 2.5 billion
// times, some 2.5 ms of an H200's instructions. Nobody asks for this order who is in a hurry.
#pragma once

#include "deform_conv/columns/problem.h"

namespace upsnet::deform_conv_columns {

constexpr int kOwnedRows = kThreads / 32, kOwnedColumns = 16, kOwnedChannels = 32;

template <typename S>
struct Listed {
  S weight[4];
  int32_t pixel[4], sample;  // pixel: row * kOwnedColumns + column of the block's; -1: of another block
};

template <typename T, typename S>
class OwnedTile {
 public:
  struct Shared {
    S sums[kOwnedRows * kOwnedColumns][kOwnedChannels + 1];  // columns in different banks
    Listed<S> listed[kThreads];
    int32_t counts[kOwnedRows];
  };

  __device__ OwnedTile(const Params& p, Shared& shared, int64_t image, int32_t row, int32_t column, int32_t channel)
      : p_(p), shared_(shared), image_(image), row_(row), column_(column), channel_(channel) {}

  // Channels of one offset group, from channel_ on.
  __device__ void run(int32_t count) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int i = 0; i < kOwnedColumns; ++i) shared_.sums[warp * kOwnedColumns + i][lane] = S(0);
    const int32_t group = channel_ / (p_.channels / p_.offset_group);
    const int64_t plane = out_plane(p_), samples = plane * p_.taps;
    for (int64_t first = 0; first < samples; first += kThreads) {
      if (list(group * p_.taps, first + threadIdx.x, samples)) apply(lane < count, lane, warp);
      __syncthreads();
    }
  }

  __device__ void write(int32_t count) const {
    const int64_t map = map_of(p_);
    T* target = static_cast<T*>(p_.grad_x) + image_ * map * p_.channels;
    const bool nhwc = p_.x_layout == Layout::kNHWC;
    for (int i = threadIdx.x; i < kOwnedRows * kOwnedColumns * kOwnedChannels; i += kThreads) {
      constexpr int kPixels = kOwnedRows * kOwnedColumns;
      const int channel = nhwc ? i % kOwnedChannels : i / kPixels, pixel = nhwc ? i / kOwnedChannels : i % kPixels;
      const int32_t row = row_ + pixel / kOwnedColumns, column = column_ + pixel % kOwnedColumns;
      if (channel >= count || row >= p_.height || column >= p_.width) continue;
      const int64_t place = int64_t(row) * p_.width + column, number = channel_ + channel;
      target[nhwc ? place * p_.channels + number : number * map + place] = narrowed<T>(shared_.sums[pixel][channel]);
    }
  }

 private:
  // Every thread looks at one sample, tap after tap and pixel after pixel. Whether any has a corner here.
  __device__ bool list(int32_t first_index, int64_t number, int64_t samples) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    Listed<S> own;
    bool here = false;
    if (number < samples) {
      const int32_t tap = int32_t(number / out_plane(p_)), pixel = int32_t(number - tap * out_plane(p_));
      const Point<S> point = deform_conv_columns::point_of<S>(p_, image_, first_index + tap, pixel);
      for (int k = 0; k < 4; ++k) {
        const int32_t row = point.pixel[k] / p_.width - row_, column = point.pixel[k] % p_.width - column_;
        const bool mine = point.pixel[k] >= 0 && unsigned(row) < kOwnedRows && unsigned(column) < kOwnedColumns;
        own.pixel[k] = mine ? row * kOwnedColumns + column : -1;
        here = here || mine;
      }
      if (here) weights_of(point, mask_of<S>(p_, image_, first_index + tap, pixel), own.weight);
      own.sample = pixel * p_.taps + tap;
    }
    const unsigned votes = __ballot_sync(~0u, here);
    if (lane == 0) shared_.counts[warp] = __popc(votes);
    __syncthreads();
    int before = 0, all = 0;
    for (int i = 0; i < kOwnedRows; ++i) {
      before += i < warp ? shared_.counts[i] : 0;
      all += shared_.counts[i];
    }
    if (here) shared_.listed[before + __popc(votes & ((1u << lane) - 1))] = own;
    listed_ = all;
    __syncthreads();
    return all > 0;
  }

  __device__ void apply(bool has_channel, int lane, int warp) {
    const T* gradient =
        static_cast<const T*>(p_.grad_columns) + image_ * out_plane(p_) * p_.taps * p_.channels + channel_ + lane;
    for (int i = 0; i < listed_; ++i) {
      const Listed<S>& one = shared_.listed[i];
      const auto mine = [&](int k) { return one.pixel[k] >= 0 && one.pixel[k] / kOwnedColumns == warp; };
      if (!(mine(0) || mine(1) || mine(2) || mine(3)) || !has_channel) continue;
      const S value = widened<S>(gradient[int64_t(one.sample) * p_.channels]);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (mine(k)) shared_.sums[one.pixel[k]][lane] += one.weight[k] * value;
      }
    }
  }

  const Params& p_;
  Shared& shared_;
  const int64_t image_;
  const int32_t row_, column_, channel_;
  int listed_ = 0;
};

}  // namespace upsnet::deform_conv_columns
