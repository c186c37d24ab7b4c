// A CUDA device on one CPU thread: enough of <cuda_runtime.h> to run this project's launch.cu files under g++.
//
// Found instead of CUDA's own header (target upsnet_emulated of CMakeLists.txt). Every thread of a block is a fiber;
// blocks run one after the other. A fiber runs until it meets a barrier, so what lies between two barriers is a race if
// the order of the threads matters: UPSNET_EMULATOR_ORDER=reverse (or shuffle) runs them in another order, and results
// must not change. A barrier that not all threads reach aborts with a message instead of hanging.
#pragma once
#define UPSNET_EMULATED 1

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct uint3 {
  unsigned x, y, z;
};

namespace emulator {

unsigned char* dynamic_shared();
void block_barrier();
void warp_barrier(unsigned mask);
unsigned lane();
uint64_t& warp_slot(unsigned lane);  // one word a lane, to pass values between the lanes of a warp
int& block_counter();

struct Place {
  uint3 thread, block;
  dim3 block_dim, grid_dim;
};
Place& place();

// Every lane of the mask gives a value; `read` sees them all through warp_slot.
template <typename Read>
auto collective(unsigned mask, uint64_t value, Read read) {
  warp_slot(lane()) = value;
  warp_barrier(mask);
  auto result = read();
  warp_barrier(mask);
  return result;
}

template <typename T>
uint64_t to_word(T value) {
  static_assert(sizeof(T) <= 8);
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof value);
  return word;
}

template <typename T>
T from_word(uint64_t word) {
  T value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

}  // namespace emulator

#define threadIdx (::emulator::place().thread)
#define blockIdx (::emulator::place().block)
#define blockDim (::emulator::place().block_dim)
#define gridDim (::emulator::place().grid_dim)

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __shared__ static
#define __align__(bytes) alignas(bytes)
#define __launch_bounds__(...)
constexpr int warpSize = 32;

using cudaStream_t = struct CUstream_st*;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchOutOfResources = 701,
  cudaErrorMisalignedAddress = 716
};
enum cudaMemcpyKind { cudaMemcpyDeviceToDevice = 3, cudaMemcpyDefault = 4 };
inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorLaunchOutOfResources: return "too many resources requested for launch";
    case cudaErrorMisalignedAddress: return "misaligned address";
    default: return "invalid argument";
  }
}

// Shared memory: 48 KB for every kernel; UPSNET_EMULATOR_SHARED bytes, or an H200's, for those that were allowed them.
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
struct cudaFuncAttributes {
  size_t sharedSizeBytes;
};
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int device);
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void*) { return cudaSuccess; }
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes);

namespace emulator {
// One launch, to its end; the errors that CUDA has for a grid, a block or shared memory that cannot be.
cudaError_t launch(const void* kernel, dim3 grid, dim3 block, size_t shared, const std::function<void()>& body);
}  // namespace emulator

inline cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t) {
  if (bytes > 0) std::memset(target, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  if (bytes > 0) std::memcpy(target, source, bytes);
  return cudaSuccess;
}

inline void __syncthreads() { emulator::block_barrier(); }
int __syncthreads_count(int predicate);
inline int __syncthreads_or(int predicate) { return __syncthreads_count(predicate) != 0; }
inline int __syncthreads_and(int predicate) { return __syncthreads_count(!predicate) == 0; }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulator::warp_barrier(mask); }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __nanosleep(unsigned) {}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return emulator::collective(mask, predicate != 0, [&] {
    unsigned votes = 0;
    for (unsigned lane = 0; lane < 32; ++lane) {
      if (mask >> lane & 1u) votes |= unsigned(emulator::warp_slot(lane)) << lane;
    }
    return votes;
  });
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }

template <typename T>
unsigned __match_any_sync(unsigned mask, T value) {
  const uint64_t own = emulator::to_word(value);
  return emulator::collective(mask, own, [&] {
    unsigned same = 0;
    for (unsigned lane = 0; lane < 32; ++lane) {
      if ((mask >> lane & 1u) && emulator::warp_slot(lane) == own) same |= 1u << lane;
    }
    return same;
  });
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const unsigned lane = emulator::lane();
  const unsigned from = (lane & ~unsigned(width - 1)) | (unsigned(source) & unsigned(width - 1));
  return emulator::collective(mask, emulator::to_word(value),
                              [&] { return emulator::from_word<T>(emulator::warp_slot(from)); });
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const unsigned lane = emulator::lane(), place = lane & unsigned(width - 1);
  const unsigned from = place >= delta ? lane - delta : lane;
  return emulator::collective(mask, emulator::to_word(value),
                              [&] { return emulator::from_word<T>(emulator::warp_slot(from)); });
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const unsigned lane = emulator::lane(), place = lane & unsigned(width - 1);
  const unsigned from = place + delta < unsigned(width) ? lane + delta : lane;
  return emulator::collective(mask, emulator::to_word(value),
                              [&] { return emulator::from_word<T>(emulator::warp_slot(from)); });
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  const unsigned lane = emulator::lane(), from = lane ^ unsigned(lanes);
  const unsigned source = (from & ~unsigned(width - 1)) == (lane & ~unsigned(width - 1)) ? from : lane;
  return emulator::collective(mask, emulator::to_word(value),
                              [&] { return emulator::from_word<T>(emulator::warp_slot(source)); });
}
template <typename T>
T __reduce_of(unsigned mask, T value, T (*combine)(T, T)) {
  return emulator::collective(mask, emulator::to_word(value), [&] {
    T total{};
    bool first = true;
    for (unsigned lane = 0; lane < 32; ++lane) {
      if (!(mask >> lane & 1u)) continue;
      const T one = emulator::from_word<T>(emulator::warp_slot(lane));
      total = first ? one : combine(total, one);
      first = false;
    }
    return total;
  });
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned value) {
  return __reduce_of<unsigned>(mask, value, [](unsigned a, unsigned b) { return a + b; });
}
inline int __reduce_add_sync(unsigned mask, int value) { return int(__reduce_add_sync(mask, unsigned(value))); }
inline int __reduce_min_sync(unsigned mask, int value) {
  return __reduce_of<int>(mask, value, [](int a, int b) { return a < b ? a : b; });
}
inline int __reduce_max_sync(unsigned mask, int value) {
  return __reduce_of<int>(mask, value, [](int a, int b) { return a > b ? a : b; });
}

// Fibers never run at the same time, and switch only at barriers: plain reads and writes are atomic.
template <typename T, typename U>
T atomicAdd(T* target, U value) {
  const T old = *target;
  *target = T(old + T(value));
  return old;
}
template <typename T, typename U>
T atomicMin(T* target, U value) {
  const T old = *target;
  *target = std::min(old, T(value));
  return old;
}
template <typename T, typename U>
T atomicMax(T* target, U value) {
  const T old = *target;
  *target = std::max(old, T(value));
  return old;
}
template <typename T, typename U>
T atomicOr(T* target, U value) {
  const T old = *target;
  *target = old | T(value);
  return old;
}
template <typename T, typename U>
T atomicAnd(T* target, U value) {
  const T old = *target;
  *target = old & T(value);
  return old;
}
template <typename T, typename U>
T atomicExch(T* target, U value) {
  const T old = *target;
  *target = T(value);
  return old;
}
template <typename T, typename U, typename V>
T atomicCAS(T* target, U expected, V value) {
  const T old = *target;
  if (old == T(expected)) *target = T(value);
  return old;
}

template <typename T>
T __ldg(const T* source) {
  return *source;
}
using std::max;
using std::min;
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
inline int __clz(int value) { return value == 0 ? 32 : __builtin_clz(unsigned(value)); }
inline int __clzll(long long value) { return value == 0 ? 64 : __builtin_clzll((unsigned long long)(value)); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __ffsll(long long value) { return __builtin_ffsll(value); }
inline unsigned __float_as_uint(float value) { return emulator::from_word<unsigned>(emulator::to_word(value)); }
inline int __float_as_int(float value) { return emulator::from_word<int>(emulator::to_word(value)); }
inline float __uint_as_float(unsigned value) { return emulator::from_word<float>(emulator::to_word(value)); }
inline float __int_as_float(int value) { return emulator::from_word<float>(emulator::to_word(value)); }

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
