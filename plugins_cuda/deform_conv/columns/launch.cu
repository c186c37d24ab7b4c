// The launches of kernel.cuh. NCHW maps are brought to channels-last and back, as forward does it; double, which checks
// gradients and need not be fast, is read and written where it lies.
#include <algorithm>

#include "common/exports.h"
#include "common/transpose.cuh"
#include "deform_conv/columns/kernel.cuh"

namespace upsnet::deform_conv_columns {
namespace {

constexpr unsigned kMostBlocks = 1u << 20;

bool is_supported(const Params& p) {
  return p.kernel_size[0] >= 1 && p.kernel_size[1] >= 1 && unsigned(p.offset_group) <= kMaxGrid &&
         deform_conv::is_supported(deform_conv::geometry_of(p, 1, 1, p.kernel_size[0], p.kernel_size[1]));
}

bool is_empty(const Params& p) { return p.batch == 0 || p.out_height <= 0 || p.out_width <= 0; }

int64_t elements(const Params& p) { return int64_t{p.batch} * p.channels * p.height * p.width; }

struct Workspace {
  void* features = nullptr;  // x, channels-last; later grad_x, rounded; null: x is read where it lies
  float* sums = nullptr;     // of grad_x, channels-last; null: grad_x itself holds them
  size_t bytes = 0;

  Workspace(const Params& p, void* memory) {
    const bool is_wide = p.x_type == kFloat64, is_turned = p.x_layout == Layout::kNCHW && !is_wide;
    const auto take = [&](size_t size) {
      void* const part = static_cast<unsigned char*>(memory) + bytes;
      bytes += aligned(size);
      return part;
    };
    if (is_turned) features = take(elements(p) * element_size(p.x_type));
    const bool in_place = is_wide || (p.x_type == DType::kFloat32 && !is_turned);
    if (!in_place && !p.deterministic) sums = static_cast<float*>(take(elements(p) * sizeof(float)));
  }
};

unsigned blocks_for(int64_t items, int each) {
  return unsigned(std::clamp<int64_t>((items + each - 1) / each, 1, kMostBlocks));
}

template <typename T>
int add_up(const Params& p, const Workspace& space, cudaStream_t stream) {
  const int64_t plane = int64_t{p.height} * p.width;
  const bool is_nhwc = p.x_layout == Layout::kNHWC;
  if (p.deterministic) {
    const Map<T> target{static_cast<T*>(p.grad_x), is_nhwc ? p.channels : 1, is_nhwc ? 1 : plane};
    const int parts = (p.channels / p.offset_group + kOwners - 1) / kOwners;
    const int64_t tiles = (int64_t{p.height} + kTile - 1) / kTile * ((int64_t{p.width} + kTile - 1) / kTile);
    if (int64_t{parts} * p.offset_group > kMaxGrid) return cudaErrorInvalidValue;
    const dim3 grid(unsigned(tiles), parts * p.offset_group, std::min<unsigned>(p.batch, kMaxGrid));
    const size_t shared = sizeof(SumOf<T>) * kTilePixels * kOwners;
    return launch_kernel(own_tiles<T>, grid, dim3(kOwners), shared, stream, p, target);
  }
  if constexpr (std::is_same_v<T, double>) {
    return cudaSuccess;  // they stand where they belong
  } else if constexpr (std::is_same_v<T, float>) {
    return is_nhwc ? cudaSuccess
                   : transpose(space.sums, static_cast<float*>(p.grad_x), p.batch, plane, p.channels, stream);
  } else {
    T* const target = static_cast<T*>(is_nhwc ? p.grad_x : space.features);
    const dim3 grid(blocks_for(elements(p), kThreads));
    UPSNET_RETURN_IF_ERROR(
        launch_kernel(round_sums<T>, grid, dim3(kThreads), 0, stream, space.sums, target, elements(p)));
    return is_nhwc ? cudaSuccess : transpose(target, static_cast<T*>(p.grad_x), p.batch, plane, p.channels, stream);
  }
}

template <typename T, int kVector>
int visit(const Params& p, const Workspace& space, cudaStream_t stream) {
  using Real = SumOf<T>;
  const int64_t plane = int64_t{p.height} * p.width;
  const bool is_nhwc = p.x_layout == Layout::kNHWC || space.features != nullptr;
  const T* const x = static_cast<const T*>(space.features ? space.features : p.x);
  const Map<const T> features{x, is_nhwc ? p.channels : 1, is_nhwc ? 1 : plane};
  Real* sums = nullptr;
  if (!p.deterministic) sums = static_cast<Real*>(space.sums ? static_cast<void*>(space.sums) : p.grad_x);
  if (sums) UPSNET_RETURN_IF_ERROR(cudaMemsetAsync(sums, 0, elements(p) * sizeof(Real), stream));
  const Map<Real> target{sums, features.pixel, features.channel};
  const dim3 grid(blocks_for(int64_t{p.batch} * p.out_height * p.out_width, kWarps), p.offset_group);
  return launch_kernel(visit_samples<T, kVector>, grid, dim3(kThreads), 0, stream, p, features, target);
}

template <typename T>
int run(const Params& p, void* workspace, cudaStream_t stream) {
  const Workspace space(p, workspace);
  constexpr int kVector = 16 / sizeof(T);
  if constexpr (!std::is_same_v<T, double>) {
    if (space.features) {
      const int64_t plane = int64_t{p.height} * p.width;
      UPSNET_RETURN_IF_ERROR(cudaError_t(
          transpose(static_cast<const T*>(p.x), static_cast<T*>(space.features), p.batch, p.channels, plane, stream)));
    }
  }
  const bool in_vectors = !std::is_same_v<T, double> && p.channels / p.offset_group % kVector == 0 &&
                          is_aligned(space.features ? space.features : p.x, 16) && is_aligned(p.grad_columns, 16) &&
                          is_aligned(p.columns, 16) && is_aligned(space.sums ? space.sums : p.grad_x, 16);
  const int status =
      in_vectors ? visit<T, std::is_same_v<T, double> ? 1 : kVector>(p, space, stream) : visit<T, 1>(p, space, stream);
  return status == cudaSuccess ? add_up<T>(p, space, stream) : status;
}

}  // namespace

size_t workspace_size(const Params& p) { return is_empty(p) || !is_supported(p) ? 0 : Workspace(p, nullptr).bytes; }

int launch(const Params& p, void* workspace, size_t bytes, CUstream_st* stream) {
  if (!is_supported(p) || bytes < workspace_size(p)) return cudaErrorInvalidValue;
  if (!has_aligned_pointers(p) || !is_aligned(workspace, 16)) return cudaErrorMisalignedAddress;
  if (is_empty(p)) {  // nothing was sampled
    return elements(p) == 0 ? cudaSuccess : cudaMemsetAsync(p.grad_x, 0, elements(p) * element_size(p.x_type), stream);
  }
  if (p.x_type == kFloat64) return run<double>(p, workspace, stream);
  switch (p.x_type) {
    case DType::kFloat32: return run<float>(p, workspace, stream);
    case DType::kFloat16: return run<Half>(p, workspace, stream);
    case DType::kBFloat16: return run<BFloat16>(p, workspace, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace upsnet::deform_conv_columns

UPSNET_EXPORT_CUDA(deform_conv_columns)
