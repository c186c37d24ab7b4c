// What every launch.cu needs of CUDA. Under the emulator <cuda_runtime.h> is ../emulator/cuda_runtime.h.
#pragma once

#include <cuda_runtime.h>

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

namespace upsnet {

// kernel<<<grid, block, shared, stream>>>(arguments...), in a form that a C++ compiler accepts; cudaGetLastError().
template <typename... Parameters, typename... Arguments>
cudaError_t launch_kernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                          Arguments... arguments) {
#ifdef UPSNET_EMULATED
  static_cast<void>(stream);
  ::emulator::run(grid, block, shared, [&] { kernel(static_cast<Parameters>(arguments)...); });
#else
  if (shared > 48 * 1024) {
    const cudaError_t raised =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (raised != cudaSuccess) return raised;
  }
  // clang-format off: it takes the brackets apart, and nvcc refuses them then
  kernel<<<grid, block, shared, stream>>>(static_cast<Parameters>(arguments)...);
  // clang-format on
#endif
  return cudaGetLastError();
}

}  // namespace upsnet

#define UPSNET_RETURN_IF_ERROR(call)                      \
  do {                                                    \
    const cudaError_t upsnet_error = (call);              \
    if (upsnet_error != cudaSuccess) return upsnet_error; \
  } while (false)
