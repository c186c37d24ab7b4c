// Small kernels whose results are known by hand: test_emulator.py runs one by its name; exit status 0 when it is right.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "common/cuda.h"
#include "common/warp.cuh"

namespace {

using upsnet::launch_kernel;

#define CHECK(condition)                                                 \
  do {                                                                   \
    if (!(condition)) {                                                  \
      std::fprintf(stderr, "%s is false in %s\n", #condition, __func__); \
      std::exit(1);                                                      \
    }                                                                    \
  } while (false)

// Every thread of every block runs once and knows its place.
__global__ void places_kernel(int* seen, dim3 grid, dim3 block) {
  CHECK(gridDim.x == grid.x && gridDim.y == grid.y && gridDim.z == grid.z);
  CHECK(blockDim.x == block.x && blockDim.y == block.y && blockDim.z == block.z);
  const unsigned block_index = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  seen[block_index * (blockDim.x * blockDim.y * blockDim.z) + thread] += 1;
}
void places() {
  const dim3 grid(3, 2, 2), block(5, 3, 2);
  std::vector<int> seen(12 * 30, 0);
  CHECK(launch_kernel(places_kernel, grid, block, 0, nullptr, seen.data(), grid, block) == cudaSuccess);
  for (const int times : seen) CHECK(times == 1);
}

__global__ void shuffles_kernel() {
  const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32);
  const int value = 100 * warp + lane;
  constexpr unsigned kAll = 0xffffffffu;
  CHECK(__shfl_sync(kAll, value, 7) == 100 * warp + 7);
  CHECK(__shfl_sync(kAll, value, 3, 8) == 100 * warp + lane / 8 * 8 + 3);
  CHECK(__shfl_sync(kAll, value, 33) == 100 * warp + 1);
  CHECK(__shfl_up_sync(kAll, value, 4) == (lane < 4 ? value : value - 4));
  CHECK(__shfl_up_sync(kAll, value, 1, 16) == (lane % 16 == 0 ? value : value - 1));
  CHECK(__shfl_down_sync(kAll, value, 4) == (lane > 27 ? value : value + 4));
  CHECK(__shfl_xor_sync(kAll, value, 5) == 100 * warp + (lane ^ 5));
  CHECK(__shfl_xor_sync(kAll, 0.5f * float(value), 1) == 0.5f * float(100 * warp + (lane ^ 1)));
  CHECK(__shfl_sync(kAll, int64_t(value) << 40, 9) == int64_t(100 * warp + 9) << 40);
  float sum = float(lane);
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kAll, sum, step);
  CHECK(sum == 496.0f);
  if (lane < 16) CHECK(__shfl_down_sync(0xffffu, value, 8, 16) == (lane < 8 ? value + 8 : value));
}
void shuffles() { launch_kernel(shuffles_kernel, 2, 96, 0, nullptr); }

__global__ void votes_kernel() {
  const unsigned lane = threadIdx.x % 32;
  constexpr unsigned kAll = 0xffffffffu;
  CHECK(__ballot_sync(kAll, lane % 4 == 0) == 0x11111111u);
  CHECK(__any_sync(kAll, lane == 9) && !__any_sync(kAll, false));
  CHECK(__all_sync(kAll, true) && !__all_sync(kAll, lane != 9));
  CHECK(__match_any_sync(kAll, lane % 2) == (lane % 2 ? 0xaaaaaaaau : 0x55555555u));
  CHECK(__reduce_add_sync(kAll, lane) == 496u);
  CHECK(__reduce_max_sync(kAll, -int(lane)) == 0 && __reduce_min_sync(kAll, -int(lane)) == -31);
  if (lane % 2) {
    CHECK(__ballot_sync(0xaaaaaaaau, lane < 8) == 0xaau);
    CHECK(__reduce_add_sync(0xaaaaaaaau, 1u) == 16u);
  }
  if (lane == 31) return;  // a thread that has left is waited for by nobody
  CHECK(__ballot_sync(0x7fffffffu, true) == 0x7fffffffu);
}
void votes() { launch_kernel(votes_kernel, 1, 64, 0, nullptr); }

// By sm_80's instructions and, with UPSNET_BEFORE_SM_80, by shuffles.
__global__ void reductions_kernel() {
  const int lane = int(threadIdx.x % 32), value = lane * 37 % 32 - 16;  // a permutation of -16 ... 15
  constexpr unsigned kAll = 0xffffffffu;
  CHECK(upsnet::warp_add(kAll, value) == -16);
  CHECK(upsnet::warp_min(kAll, value) == -16 && upsnet::warp_max(kAll, value) == 15);
  const unsigned peers = lane < 3 ? 0x7u : lane == 9 ? 1u << 9 : 0xfffffdf8u;
  CHECK(upsnet::warp_add(peers, lane) == (lane < 3 ? 3 : lane == 9 ? 9 : 496 - 3 - 9));
  CHECK(upsnet::warp_min(peers, lane) == (lane < 3 ? 0 : lane == 9 ? 9 : 3));
  CHECK(upsnet::warp_max(peers, lane) == (lane < 3 ? 2 : lane == 9 ? 9 : 31));
}
void reductions() { launch_kernel(reductions_kernel, 1, 64, 0, nullptr); }

__global__ void block_votes_kernel(int* counts) {
  __shared__ int total;
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  atomicAdd(&total, int(threadIdx.x));
  __syncthreads();
  CHECK(total == 100 * 99 / 2);
  for (int limit = 0; limit < 5; ++limit) CHECK(__syncthreads_count(int(threadIdx.x) < 10 * limit) == 10 * limit);
  CHECK(__syncthreads_or(threadIdx.x == 3) && !__syncthreads_or(0));
  CHECK(__syncthreads_and(1) && !__syncthreads_and(threadIdx.x != 3));
  if (threadIdx.x == 0) counts[blockIdx.x] = total;
}
void block_votes() {
  std::vector<int> counts(3, 0);
  launch_kernel(block_votes_kernel, 3, 100, 0, nullptr, counts.data());
  for (const int count : counts) CHECK(count == 4950);
}

__global__ void atomics_kernel(int* values, unsigned long long* best) {
  atomicAdd(values, 2);
  atomicMax(values + 1, int(threadIdx.x));
  atomicMin(values + 2, -int(threadIdx.x));
  atomicOr(values + 3, 1 << threadIdx.x % 8);
  CHECK(atomicCAS(values + 4, 1, 2) == 0);
  atomicMax(best, (unsigned long long)(threadIdx.x) << 32);
}
void atomics() {
  int values[5] = {};
  unsigned long long best = 0;
  launch_kernel(atomics_kernel, 1, 64, 0, nullptr, &values[0], &best);
  CHECK(values[0] == 128 && values[1] == 63 && values[2] == -63 && values[3] == 255 && values[4] == 0);
  CHECK(best == 63ull << 32);
}

// Dynamic shared memory is new for every block, aligned, and full of NaN.
__global__ void dynamic_shared_kernel() {
  UPSNET_DYNAMIC_SHARED(bytes);
  CHECK(reinterpret_cast<uintptr_t>(bytes) % 16 == 0);
  float* values = reinterpret_cast<float*>(bytes);
  CHECK(std::isnan(values[threadIdx.x]));
  __syncthreads();
  values[threadIdx.x] = float(threadIdx.x);
  __syncthreads();
  CHECK(values[63 - threadIdx.x] == float(63 - threadIdx.x));
}
void dynamic_shared() { launch_kernel(dynamic_shared_kernel, 4, 64, 64 * sizeof(float), nullptr); }

// More than 48 KB are there once a kernel was allowed them: all that the device has, once (a second time is an error in
// the emulator), whatever several threads want at the same time.
template <int>
__global__ void last_byte_kernel(size_t bytes) {
  UPSNET_DYNAMIC_SHARED(memory);
  memory[bytes - 1] = 1;
}
void large_shared() {
  constexpr size_t kMost = 227 * 1024;
  const auto launch = [](auto* kernel, size_t bytes) { return launch_kernel(kernel, 1, 1, bytes, nullptr, bytes); };
  CHECK(launch(last_byte_kernel<0>, kMost + 1) == cudaErrorLaunchOutOfResources);
  for (const size_t bytes : {size_t{100}, kMost, size_t{60 * 1024}, kMost}) {
    CHECK(launch(last_byte_kernel<0>, bytes) == cudaSuccess);
  }
  std::vector<std::thread> threads;
  std::atomic<int> failed{0};
  for (size_t bytes = 50 * 1024; bytes <= kMost; bytes += 10 * 1024) {
    threads.emplace_back([&, bytes] { failed += launch(last_byte_kernel<1>, bytes) != cudaSuccess; });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(failed == 0);
}

// Its first launches, by several threads at once, without the launches: the thread sanitizer knows no fibers.
void first_launches() {
  std::vector<std::thread> threads;
  std::atomic<int> failed{0};
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      for (auto* kernel : {last_byte_kernel<2>, last_byte_kernel<3>, last_byte_kernel<4>}) {
        size_t limit = 0;
        failed += upsnet::shared_limit(reinterpret_cast<const void*>(kernel), limit) != cudaSuccess || limit == 0;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(failed == 0);
}

__global__ void nothing_kernel() {}
void impossible_grids() {
  for (const dim3 grid : {dim3(0), dim3(1, 65536), dim3(1, 1, 65536), dim3(1u << 31)}) {
    CHECK(launch_kernel(nothing_kernel, grid, 1, 0, nullptr) == cudaErrorInvalidConfiguration);
  }
  for (const dim3 block : {dim3(0), dim3(1025), dim3(32, 33), dim3(1, 1, 65)}) {
    CHECK(launch_kernel(nothing_kernel, 1, block, 0, nullptr) == cudaErrorInvalidConfiguration);
  }
}

__global__ void divergent_kernel() {
  if (threadIdx.x < 32) __syncthreads();
  if (threadIdx.x >= 32) __ballot_sync(0xffffffffu, threadIdx.x < 40 ? (__syncthreads(), 1) : 1);
}
void divergent() { launch_kernel(divergent_kernel, 1, 64, 0, nullptr); }

__global__ void wrong_mask_kernel() {
  if (threadIdx.x < 16) __ballot_sync(0xffffffffu, 1);  // the other half never comes
  __syncthreads();
}
void wrong_mask() { launch_kernel(wrong_mask_kernel, 1, 32, 0, nullptr); }

// Neighbours' values without a barrier between writing and reading: the sum depends on who runs first.
template <bool barrier>
__global__ void neighbour_kernel(int* sums) {
  __shared__ int values[64];
  values[threadIdx.x] = 0;
  __syncthreads();
  values[threadIdx.x] = int(threadIdx.x) + 1;
  if (barrier) __syncthreads();
  sums[threadIdx.x] = values[(threadIdx.x + 1) % 64] - values[(threadIdx.x + 63) % 64];
}
template <bool barrier>
void neighbour() {
  std::vector<int> sums(64);
  launch_kernel(neighbour_kernel<barrier>, 1, 64, 0, nullptr, sums.data());
  for (const int sum : sums) std::printf("%d ", sum);
}

__global__ void write_kernel(float* values, int index) { values[index] = 1.0f; }
void outside_global() {
  std::vector<float> values(64);
  launch_kernel(write_kernel, 1, 1, 0, nullptr, values.data(), 64);
}

__global__ void outside_shared_kernel(int index) {
  UPSNET_DYNAMIC_SHARED(bytes);
  bytes[index] = 1;
}
void outside_shared() { launch_kernel(outside_shared_kernel, 1, 1, 100, nullptr, 100); }

__global__ void overflow_kernel(int* value) { *value += int(threadIdx.x) + 1; }
void overflow() {
  int value = std::numeric_limits<int>::max();
  launch_kernel(overflow_kernel, 1, 1, 0, nullptr, &value);
}

}  // namespace

int main(int, char** arguments) {
  const std::map<std::string, void (*)()> kernels = {
      {"places", places},
      {"shuffles", shuffles},
      {"votes", votes},
      {"reductions", reductions},
      {"block_votes", block_votes},
      {"atomics", atomics},
      {"dynamic_shared", dynamic_shared},
      {"large_shared", large_shared},
      {"first_launches", first_launches},
      {"impossible_grids", impossible_grids},
      {"divergent", divergent},
      {"wrong_mask", wrong_mask},
      {"race", neighbour<false>},
      {"no_race", neighbour<true>},
      {"outside_global", outside_global},
      {"outside_shared", outside_shared},
      {"overflow", overflow},
  };
  kernels.at(arguments[1])();
}
