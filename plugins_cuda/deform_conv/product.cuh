// How a block multiplies: the steps of some taps, and how gathering, blending and multiplying overlap.
#pragma once

#include "deform_conv/block.cuh"

namespace upsnet::deform_conv {

// Half and BFloat16. A warp samples, gathers and blends for itself; the block shares the weights alone.
template <typename T, int kOutputs, bool kAligned>
struct Product : Block<T, kOutputs, kAligned> {
  using Base = Block<T, kOutputs, kAligned>;
  using typename Base::Corners, typename Base::Products;
  using Fragments = typename Products::Fragments;
  static constexpr int kItems = Products::kItems;
  static constexpr int kBlocksAtOnce = 2;  // in a multiprocessor
  using Base::Base;

  // All steps of `taps` taps from first_tap on, of this split.
  __device__ void accumulate(Products& products, int taps) const {
    const int32_t begin = this->begin_of_split(taps, this->place.split);
    const int32_t steps = this->begin_of_split(taps, this->place.split + 1) - begin;
    if (steps == 0) return;
    Step step = this->step_of(begin, taps);
    const unsigned inside = compute_samples(step.tap, min(taps, steps + 1), taps);
    __syncthreads();  // others may still read weights
    const unsigned char* weights = this->first_weights();
    this->fetch_weights(weights, 0, step);
    const auto is_whole = [&](const Step& at) {
      return (inside >> at.tap & 1u) != 0 && (at.chunk + 1) * Products::kChunk <= this->problem.segment;
    };
    // `step` is the one whose pixels are blended, `ahead` the one that is gathered: its corners arrive meanwhile. After
    // the last step another one is begun: of a chunk past the segment, nothing is read.
    Step ahead = step;
    bool whole = is_whole(ahead);
    Corners corners = this->gather(0, ahead, whole);
    const auto advance_item = [&](int item) {
      if (item < kItems - 1) return this->gather(item + 1, ahead, whole);
      ahead.advance(taps);
      whole = is_whole(ahead);
      return this->gather(0, ahead, whole);
    };
    const auto blend_item = [&](Fragments& fragments, int item) {
      float blended[Products::kLanes];
      this->blend_unit(blended, item, step, corners);
      Products::store(fragments, item, blended);
    };
    Fragments next;
#pragma unroll
    for (int item = 0; item < kItems; ++item) {
      const Corners following = advance_item(item);
      blend_item(next, item);
      corners = following;
    }
    int stage = 0;
    for (int left = steps; left > 1; --left, stage ^= 1) {
      step = ahead;
      wait_for_copies();
      __syncthreads();
      this->fetch_weights(weights, stage ^ 1, step);
      const Fragments current = next;
#pragma unroll
      for (int item = 0; item < kItems; ++item) {
        const Corners following = advance_item(item);
        products.multiply(current, this->weights(stage), item);
        blend_item(next, item);
        corners = following;
      }
    }
    wait_for_copies();
    __syncthreads();
#pragma unroll
    for (int part = 0; part < kItems; ++part) products.multiply(next, this->weights(stage), part);
  }

 private:
  // This warp's samples of `count` taps from `first` on, of `taps`, after the last of which comes the first. Bit `tap`
  // of the result: all of them are four pixels of the map.
  __device__ unsigned compute_samples(int first, int count, int taps) const {
    static_assert(Products::kItems * 8 == 32, "a lane for each pixel of a warp");
    __syncwarp();
    unsigned inside = 0;
#pragma unroll 3
    for (int i = 0; i < count; ++i) {
      const int tap = first + i < taps ? first + i : first + i - taps;
      const bool whole = this->compute_sample(tap, Products::first_pixel() + Products::lane());
      inside |= unsigned(__all_sync(~0u, whole) != 0) << tap;
    }
    __syncwarp();
    return inside;
  }
};

// float: pixels, too, pass through shared memory; the next step's are blended between the parts of this one.
template <int kOutputs, bool kAligned>
struct Product<float, kOutputs, kAligned> : Block<float, kOutputs, kAligned> {
  using Base = Block<float, kOutputs, kAligned>;
  using typename Base::Corners, typename Base::Products;
#ifdef UPSNET_BEFORE_SM_80
  static constexpr int kBlocksAtOnce = 1;  // in a multiprocessor: its shared memory holds no more
#else
  static constexpr int kBlocksAtOnce = 2;
#endif
  using Base::Base;

  __device__ void accumulate(Products& products, int taps) const {
    const int32_t begin = this->begin_of_split(taps, this->place.split);
    const int32_t steps = this->begin_of_split(taps, this->place.split + 1) - begin;
    if (steps == 0) return;
    for (int i = threadIdx.x; i < taps * kPixels; i += Products::kThreads) {
      this->compute_sample(i / kPixels, i % kPixels);
    }
    __syncthreads();
    Step next = this->step_of(begin, taps);
    const unsigned char* weights = this->first_weights();
    this->fetch_weights(weights, 0, next);
#pragma unroll
    for (int item = 0; item < Products::kItems; ++item) blend_item(0, item, next, gather_item(item, next));
    wait_for_copies();
    __syncthreads();
    for (int left = steps, stage = 0; left > 0; --left, stage ^= 1) {
      const bool more = left > 1;
      next.advance(taps);
      if (more) this->fetch_weights(weights, stage ^ 1, next);
#pragma unroll
      for (int item = 0; item < Products::kItems; ++item) {
        Corners corners;
        if (more) corners = gather_item(item, next);
        products.multiply(this->pixels(stage), this->weights(stage), item);
        if (more) blend_item(stage ^ 1, item, next, corners);
      }
      wait_for_copies();
      __syncthreads();
    }
  }

 private:
  __device__ Corners gather_item(int item, const Step& step) const { return this->gather(item, step, false); }

  __device__ void blend_item(int stage, int item, const Step& step, const Corners& corners) const {
    float blended[Products::kLanes];
    this->blend_unit(blended, item, step, corners);
    Products::store(this->pixels(stage), item, blended);
  }
};

}  // namespace upsnet::deform_conv
