// What every launch.cu needs of CUDA. Under the emulator <cuda_runtime.h> is ../emulator/cuda_runtime.h.
#pragma once

#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <utility>

#include "common/numeric.h"
#include "common/types.h"

// Turing (sm_75, a T4) lacks what sm_80 has: mma.cuh and warp.cuh spell it out there. The emulator compiles that, too,
// in a library of its own (CMakeLists.txt).
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 750
#error "GPUs before sm_75 (a T4, an RTX 20) are too old for these kernels"
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define UPSNET_BEFORE_SM_80
#endif

// Dynamic shared memory: UPSNET_DYNAMIC_SHARED(name) declares `unsigned char* name`, aligned to 16 bytes.
#ifdef UPSNET_EMULATED
#define UPSNET_DYNAMIC_SHARED(name) unsigned char* name = ::emulator::dynamic_shared()
#else
#define UPSNET_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

#define UPSNET_RETURN_IF_ERROR(call)                      \
  do {                                                    \
    const cudaError_t upsnet_error = (call);              \
    if (upsnet_error != cudaSuccess) return upsnet_error; \
  } while (false)

namespace upsnet {

constexpr unsigned kMaxGrid = 65535;         // blocks in y and in z
constexpr size_t kSharedAtOnce = 48 * 1024;  // bytes that every kernel may have; a larger share it must be allowed

// limit = the dynamic shared memory that a block of the kernel can have: all that the current device has. The kernel is
// allowed it on first use, once for each device. Were it allowed what one launch wants, a thread could take from
// another what that one is about to use.
inline cudaError_t shared_limit(const void* kernel, size_t& limit) {
  static std::mutex lock;
  static auto& limits = *new std::map<std::pair<const void*, int>, size_t>;  // other threads may outlive destructors
  int device = 0, bytes = 0;
  UPSNET_RETURN_IF_ERROR(cudaGetDevice(&device));
  const std::lock_guard<std::mutex> guard(lock);
  const auto known = limits.find({kernel, device});
  if (known != limits.end()) {
    limit = known->second;
    return cudaSuccess;
  }
  cudaFuncAttributes attributes{};
  UPSNET_RETURN_IF_ERROR(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  UPSNET_RETURN_IF_ERROR(cudaFuncGetAttributes(&attributes, kernel));
  bytes -= static_cast<int>(attributes.sharedSizeBytes);
  UPSNET_RETURN_IF_ERROR(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  limit = limits[{kernel, device}] = static_cast<size_t>(bytes);
  return cudaSuccess;
}

// kernel<<<grid, block, shared, stream>>>(arguments...), in a form that a C++ compiler accepts, and with the error of
// this launch alone. cudaErrorLaunchOutOfResources where the device has less shared memory.
template <typename... Parameters, typename... Arguments>
cudaError_t launch_kernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                          Arguments... arguments) {
  const auto* const address = reinterpret_cast<const void*>(kernel);
  if (shared > kSharedAtOnce) {
    size_t limit = 0;
    UPSNET_RETURN_IF_ERROR(shared_limit(address, limit));
    if (shared > limit) return cudaErrorLaunchOutOfResources;
  }
#ifdef UPSNET_EMULATED
  static_cast<void>(stream);
  return ::emulator::launch(address, grid, block, shared, [&] { kernel(static_cast<Parameters>(arguments)...); });
#else
  return [&](Parameters... values) {
    void* pointers[] = {&values..., nullptr};
    const cudaError_t error = cudaLaunchKernel(address, grid, block, pointers, shared, stream);
    if (error != cudaSuccess) cudaGetLastError();  // it has been seen
    return error;
  }(static_cast<Parameters>(arguments)...);
#endif
}

}  // namespace upsnet
