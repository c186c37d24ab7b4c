// common/transpose.cuh for test_emulated_transpose.py.
#include "common/transpose.cuh"

namespace {

using upsnet::Transposition;

// Every other tile of `columns` columns, counted over maps and images. All threads of a block must be asked together.
struct WantEveryOther {
  int64_t columns;

  __device__ bool operator()(int map, int64_t image, int64_t first, int64_t count) const {
    return __syncthreads_or(threadIdx.x == 7 && count > 0 && (map + image + first / columns) % 2 == 0);
  }
};

template <typename T>
int run(const Transposition& maps, int64_t every_other) {
  if (every_other == 0) return upsnet::transpose<T>(maps, nullptr);
  return upsnet::transpose<T>(maps, nullptr, WantEveryOther{every_other});
}

}  // namespace

// every_other: 0, or the columns of a tile.
extern "C" int transpose_maps(const Transposition* maps, int element_bytes, int64_t every_other) {
  return element_bytes == 2 ? run<upsnet::Half>(*maps, every_other) : run<float>(*maps, every_other);
}
