// How a block multiplies: the steps of some taps, and how gathering, blending and multiplying overlap.
#pragma once

#include "deform_conv/block.cuh"

namespace upsnet::deform_conv {

// Half and BFloat16. A warp samples, gathers and blends for itself, and shares the weights alone; where two have the
// same pixels (Tile::kTogether), each does half of that.
template <typename T, int kOutputs, bool kAligned>
struct Product : Block<T, kOutputs, kAligned> {
  using Base = Block<T, kOutputs, kAligned>;
  using typename Base::Corners, typename Base::Products;
  using Fragments = typename Products::Fragments;
  static constexpr int kItems = Products::kItems;
  static constexpr int kTogether = Products::kTogether;
  static constexpr int kBlocksAtOnce = 2 / kTogether;  // in a multiprocessor
  using Base::Base;

  // All steps of `taps` taps from first_tap on, of this split.
  __device__ void accumulate(Products& products, int taps) const {
    const int32_t begin = this->begin_of_split(taps, this->place.split);
    const int32_t steps = this->begin_of_split(taps, this->place.split + 1) - begin;
    if (steps == 0) return;
    Step step = this->step_of(begin, taps);
    // Of the taps of these steps and of one more; behind the last of them comes the first.
    const int sampled = min(taps, steps + 1);
    __syncwarp();
    compute_samples(step.tap, sampled, taps);
    __syncthreads();  // others may still have read weights, too
    const unsigned inside = taps_inside(step.tap, sampled, taps);
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
    const auto gather_after = [&](int own) {
      if (own < Products::kOwn - 1) return this->gather(own + 1, ahead, whole);
      ahead.advance(taps);
      whole = is_whole(ahead);
      return this->gather(0, ahead, whole);
    };
    Fragments next;
    const auto blend_own = [&](int stage, int own) {
      float blended[Products::kLanes];
      this->blend_unit(blended, own, step, corners);
      Products::set(next, own, blended);
      if (kTogether > 1 && own == Products::kOwn - 1) Products::hand_over(next, this->pixels(stage));
    };
    const auto blended = [&](int stage) { return kTogether > 1 ? Products::take_over(this->pixels(stage)) : next; };
#pragma unroll
    for (int own = 0; own < Products::kOwn; ++own) {
      const Corners following = gather_after(own);
      blend_own(0, own);
      corners = following;
    }
    int stage = 0;
    for (int left = steps; left > 1; --left, stage ^= 1) {
      step = ahead;
      wait_for_copies();
      __syncthreads();
      this->fetch_weights(weights, stage ^ 1, step);
      const Fragments current = blended(stage);
      Corners following;
#pragma unroll
      for (int part = 0; part < kItems; ++part) {
        const int own = part / kTogether;
        if (part % kTogether == 0) following = gather_after(own);
        products.multiply(current, this->weights(stage), part);
        if (part % kTogether == kTogether - 1) blend_own(stage ^ 1, own), corners = following;
      }
    }
    wait_for_copies();
    __syncthreads();
    const Fragments last = blended(stage);
#pragma unroll
    for (int part = 0; part < kItems; ++part) products.multiply(last, this->weights(stage), part);
  }

 private:
  __device__ void compute_samples(int first, int count, int taps) const {
#pragma unroll 3
    for (int i = Products::first_own() / Products::kOwn; i < count; i += kTogether) {
      const int tap = first + i < taps ? first + i : first + i - taps;
      this->compute_sample(tap, Products::first_pixel() + Products::lane());
    }
  }

  // Bit `tap`: all of this warp's pixels sample four pixels of the map there.
  __device__ unsigned taps_inside(int first, int count, int taps) const {
    unsigned inside = 0;
    for (int i = 0; i < count; ++i) {
      const int tap = first + i < taps ? first + i : first + i - taps;
      const int4 found = this->corners[tap * kPixels + Products::first_pixel() + Products::lane()];
      inside |= unsigned(__all_sync(~0u, (found.x | found.y | found.z | found.w) >= 0) != 0) << tap;
    }
    return inside;
  }
};

// float: pixels, too, pass through shared memory; the next step's are blended between the parts of this one.
template <int kOutputs, bool kAligned>
struct Product<float, kOutputs, kAligned> : Block<float, kOutputs, kAligned> {
  using Base = Block<float, kOutputs, kAligned>;
  using typename Base::Corners, typename Base::Products;
  static constexpr int kBlocksAtOnce = 2;  // in a multiprocessor; one where its shared memory is short (launch.cu)
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
