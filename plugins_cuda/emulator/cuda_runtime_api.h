// What the plugins, who plays TensorRT to them, and TensorRT's headers want of CUDA (tests).
#pragma once

#include <cstdlib>

#include "cuda_runtime.h"

using cudaEvent_t = struct CUevent_st*;

inline cudaError_t cudaMalloc(void** data, size_t bytes) {
  return posix_memalign(data, 256, bytes) == 0 ? cudaSuccess : cudaErrorInvalidValue;
}
inline cudaError_t cudaFree(void* data) { return std::free(data), cudaSuccess; }
inline cudaError_t cudaMemset(void* data, int value, size_t bytes) {
  return cudaMemsetAsync(data, value, bytes, nullptr);
}
inline cudaError_t cudaMemcpy(void* target, const void* source, size_t bytes, cudaMemcpyKind kind) {
  return cudaMemcpyAsync(target, source, bytes, kind, nullptr);
}
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
