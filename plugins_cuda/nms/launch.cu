// NMS on the GPU: one block for each row of the batch, nothing sorted but what is looked at.
//
// A candidate is a 64-bit key (kernel.cuh). In rounds, until enough boxes are kept, a block sorts the best 1024 that
// are left (round.cuh) and suppresses (suppress.cuh). A row of more than kFew scores gets a shortlist before that, made
// by all multiprocessors (shortlist.cuh): then the block passes over a tenth as many keys. A row that has not enough
// boxes when its shortlist is used up goes on with all of its scores, in three passes a round.
//
// 1000 boxes x 80 classes of which 100 are kept, after 620 candidates, are a chain of steps that wait for each other,
// most of them on one multiprocessor. First launch: one read of memory, twelve steps of a warp. Second: the ends of the
// shortlist, a histogram and a sort of its keys from L2, their boxes, and five chunks of four barriers; these are half
// of all the time, some 7 of 15 us. The host learns nothing: shapes are fixed, the count is an output.
#include "common/exports.h"
#include "nms/launch.h"
#include "nms/shortlist.cuh"
#include "nms/suppress.cuh"

namespace upsnet::nms {
namespace {

constexpr int kFew = 16384;  // scores that one block has read before a second launch would begin

int most_kept(const Params& params) {
  return params.max_output < params.num_boxes ? params.max_output : params.num_boxes;
}

// From the shortlist's floor, the greatest last candidate of a full list, to its best candidate. Where no list is full,
// the shortlist has every candidate, and its floor is `bottom`, which is below them all.
__device__ Span ends_of(Shared& shared, const uint64_t* lists, int num_lists, uint64_t bottom) {
  uint64_t best = 0, floor = bottom;
#pragma unroll 1
  for (int i = threadIdx.x; i < num_lists; i += kThreads) {
    best = max(best, lists[i * kListed]);
    floor = max(floor, lists[i * kListed + kListed - 1]);
  }
  const auto [high, low] = greatest(shared, best, floor);
  return {low, high};
}

// lists: null without a shortlist.
template <bool kByClass>
__global__ void __launch_bounds__(kThreads, 1)
    nms_kernel(Params params, Box* kept_boxes, int64_t* kept_classes, const uint64_t* lists, int num_lists) {
  __shared__ Shared shared;
  const int64_t start = int64_t{blockIdx.x} * params.num_boxes;
  const int64_t kept_start = int64_t{blockIdx.x} * min(params.max_output, params.num_boxes);
  const Row row{params.boxes + start * 4, kByClass ? params.classes + start : nullptr, kept_boxes + kept_start,
                kByClass ? kept_classes + kept_start : nullptr,
                params.indices + int64_t{blockIdx.x} * params.max_output};
  Source source{nullptr, params.scores + start, params.num_boxes, params.score_threshold};
  const uint64_t bottom = uint64_t{order_of(params.score_threshold)} << 32;
  Span left{bottom, ~uint64_t{0}};  // bounds of the source's keys that no round has had
  if (lists) {
    source.list = lists + int64_t{blockIdx.x} * num_lists * kListed;
    source.count = num_lists * kListed;
    left = ends_of(shared, source.list, num_lists, bottom);
  }
  bool has_ends = lists != nullptr;  // the bounds are as tight as a span
  int kept = 0;
  while (kept < params.max_output) {
    const Span span = has_ends ? left : find_span(shared, source, left);
    has_ends = false;
    if (span.low > span.high) {
      if (!source.list) break;
      source.list = nullptr;
      source.count = params.num_boxes;
      left = {bottom, left.low - 1};
      continue;
    }
    const Round round = open_round(shared, source, span);
    fill_round<kByClass>(shared, source, row, round, span.high);
    const int earlier = kept;
    for (int first = 0; first < round.count && kept < params.max_output; first += kChunk) {
      kept = suppress_chunk<kByClass>(shared, row, params, first, round.count, earlier, kept);
    }
    left.high = round.low() > span.low ? round.low() - 1 : 0;
  }
  for (int i = kept + threadIdx.x; i < params.max_output; i += kThreads) row.indices[i] = 0;
  if (threadIdx.x == 0) params.counts[blockIdx.x] = kept;
}

size_t kept_boxes_size(const Params& params) {
  return aligned(sizeof(Box) * size_t(params.batch) * size_t(most_kept(params)));
}

size_t kept_classes_size(const Params& params) {
  return aligned(sizeof(int64_t) * size_t(params.batch) * size_t(most_kept(params)));
}

size_t lists_size(const Params& params) {
  if (params.num_boxes <= kFew) return 0;
  return aligned(sizeof(uint64_t) * size_t(params.batch) * size_t(num_lists(params.num_boxes)) * kListed);
}

}  // namespace

// The same with and without classes, because a caller may ask before it has any pointer.
size_t workspace_size(const Params& params) {
  return kept_boxes_size(params) + kept_classes_size(params) + lists_size(params);
}

int launch(const Params& params, void* workspace, size_t bytes, CUstream_st* stream) {
  if (!is_supported(params) || bytes < workspace_size(params)) return cudaErrorInvalidValue;
  if (!has_aligned_pointers(params) || !is_aligned(workspace, sizeof(Box))) return cudaErrorMisalignedAddress;
  if (params.batch == 0) return cudaSuccess;
  char* const memory = static_cast<char*>(workspace);
  Box* const boxes = reinterpret_cast<Box*>(memory);
  int64_t* const classes = reinterpret_cast<int64_t*>(memory + kept_boxes_size(params));
  uint64_t* lists = nullptr;
  const int count = num_lists(params.num_boxes);
  if (params.num_boxes > kFew) {
    lists = reinterpret_cast<uint64_t*>(memory + kept_boxes_size(params) + kept_classes_size(params));
    const unsigned blocks = (count + kListsOfBlock - 1) / kListsOfBlock * params.batch;
    UPSNET_RETURN_IF_ERROR(
        launch_kernel(shortlist_kernel, dim3(blocks), dim3(kListThreads), 0, stream, params, lists, count));
  }
  return launch_kernel(params.classes ? nms_kernel<true> : nms_kernel<false>, dim3(params.batch), dim3(kThreads), 0,
                       stream, params, boxes, classes, lists, count);
}

}  // namespace upsnet::nms

UPSNET_EXPORT_CUDA(nms)
