// The GPU front: it queues steps 1 (prune.cuh), 2 (channels.cuh, label.cuh) and 3 (merge.cuh).
// Panoptic fusion on a GPU: four launches for either merge, three without detections. Their shapes depend on nothing
// but the parameters.
//
//   rasterize      every detection's mask as bits, who competes with whom; zeros    rasterize.cuh
//   prune          greedy, on the bits: up to kRounds (8) rounds over all masks     prune.cuh
//   label_pixels   argmax over stuff, accepted instances, unknown; or the first     channels.cuh, label.cuh
//                  accepted mask, else the best channel; statistics
//   merge          majority rule, area limit, table; label -> panoptic value        merge.cuh
//
// Why it is fast: the logits are read once, at a quarter of the resolution; nothing of size instances x H x W exists
// but bits; what merging needs is counted where the labels are made; and only channels that can win are interpolated.
// COCO, 53 + 80 classes, 800 x 1344: 17.9 MB (half) or 35.8 MB (float) of logits read, 3 MB of labels and values
// written and read: 5 to 9 us of an H200's memory.
//
// label_pixels is bound by what it issues. A multiprocessor starts four warp instructions a cycle, 924 G a second on
// 132 of them at 1.75 GHz, and comparisons, minima and selections run at half that rate. Interpolating all channels is
// 143 M logits at 2 operations and 1 (things) or 3 (stuff) of the slow ones: 18 us. To find out which can win takes,
// for each cell and two channels, 7 or 8 minima, maxima and comparisons and 6 loads from shared memory. On maps like a
// network's 3 + 2 of 53 + 80 channels are left for a warp's 16 cells, 12 + 11 under noise as strong as a third of them.
// Where all are left (equal logits, NaN) the channels take half as long again as if nothing had been tried. Each pair
// of a warp and an instance's box is some 450 instructions more, 3 pairs a warp where 90 instances are spread over a
// few objects.
//
// Heuristic, 53 + 1 channels: 7.3 MB (half) or 14.5 MB (float) of logits and the same 3 MB, 2 to 4 us of memory. Blocks
// that masks cover read no channels. 100 masks of the whole frame are 13.4 MB of bits, which the first round reads
// once, 3 us of L2, and later ones as far as masks are open or accepted.
//
// A round of prune is a chain of four trips to L2 and two of atomics, 2 to 3 us; most inputs take one or two, crowds of
// a hundred three to six. A chain of more than kRounds masks, each of which decides about the next, costs another
// microsecond or two a mask, or more where they are large: one block reads all words of the accepted ones before. Step
// 1 needs no logits of the map: it could run beside scan_channels.
//
// Workspace: `detections` bits a pixel, rows rounded up to 32 pixels, and small tables; no more than 16 bytes a pixel
// over that for any map beyond a few cells.
#include "common/cuda.h"
#include "common/exports.h"
#include "panoptic_fusion/label.cuh"
#include "panoptic_fusion/merge.cuh"
#include "panoptic_fusion/prune.cuh"
#include "panoptic_fusion/rasterize.cuh"

namespace upsnet::panoptic_fusion {
namespace {

template <bool kHeuristic>
cudaError_t make_masks(const Params& p, const Workspace& workspace, cudaStream_t stream) {
  auto* raster = rasterize<float, kHeuristic>;
  if (p.mask_logits_type == DType::kFloat16) raster = rasterize<Half, kHeuristic>;
  if (p.mask_logits_type == DType::kBFloat16) raster = rasterize<BFloat16, kHeuristic>;
  const dim3 grid(kRasterBlocks, p.detections > 0 ? p.detections : 1, p.batch);
  return launch_kernel(raster, grid, dim3(32, kRasterWarps), 0, stream, p, workspace);
}

cudaError_t find_accepted(const Params& p, const Workspace& workspace, cudaStream_t stream) {
  const int across = tiles_across(p), tiles = tiles_of(p);
  if (p.detections == 0 || tiles == 0) return cudaSuccess;
  return launch_kernel(prune, dim3(unsigned(p.batch * tiles)), dim3(kLabels), 0, stream, p, workspace, across, tiles);
}

template <typename T, Layout kLayout>
cudaError_t label(const Params& p, const Workspace& workspace, cudaStream_t stream) {
  const dim3 grid((p.width + kCellColumns) / kCellColumns, (p.height + kCellRows) / kCellRows, p.batch);
  const dim3 block(32, kWarps);
  auto* const kernel = p.heuristic ? label_pixels<T, kLayout, true> : label_pixels<T, kLayout, false>;
  return launch_kernel(kernel, grid, block, 0, stream, p, workspace);
}

template <typename T>
cudaError_t label(const Params& p, const Workspace& workspace, cudaStream_t stream) {
  if (p.semantic_layout == Layout::kNCHW) return label<T, Layout::kNCHW>(p, workspace, stream);
  return label<T, Layout::kNHWC>(p, workspace, stream);
}

cudaError_t label(const Params& p, const Workspace& workspace, cudaStream_t stream) {
  switch (p.semantic_type) {
    case DType::kFloat32: return label<float>(p, workspace, stream);
    case DType::kFloat16: return label<Half>(p, workspace, stream);
    default: return label<BFloat16>(p, workspace, stream);
  }
}

}  // namespace

size_t workspace_size(const Params& params) { return workspace_of(params, nullptr).size; }

int launch(const Params& params, void* memory, size_t bytes, CUstream_st* stream) {
  if (!is_supported(params) || bytes < workspace_size(params)) return cudaErrorInvalidValue;
  if (!has_aligned_pointers(params) || !is_aligned(params.panoptic, 16) || !is_aligned(memory, 16)) {
    return cudaErrorMisalignedAddress;
  }
  if (params.batch == 0) return cudaSuccess;
  const Workspace workspace = workspace_of(params, memory);
  const bool pixels = params.height > 0 && params.width > 0;
  UPSNET_RETURN_IF_ERROR(params.heuristic ? make_masks<true>(params, workspace, stream)
                                          : make_masks<false>(params, workspace, stream));
  UPSNET_RETURN_IF_ERROR(find_accepted(params, workspace, stream));
  if (pixels) UPSNET_RETURN_IF_ERROR(label(params, workspace, stream));
  const size_t blocks = (size_t(params.height) * params.width + kLabels - 1) / kLabels;
  const unsigned few = blocks == 0 ? 1 : blocks < kMostBlocks ? unsigned(blocks) : kMostBlocks;
  return launch_kernel(merge, dim3(few, 1, params.batch), dim3(kLabels), 0, stream, params, workspace);
}

}  // namespace upsnet::panoptic_fusion

UPSNET_EXPORT_CUDA(panoptic_fusion)
