// Bytes to fp16 numbers, for the one output that TensorRT does not take as bytes (../panoptic_fusion/plugin.cpp).
#pragma once

#include <cstdint>

struct CUstream_st;

namespace upsnet::tensorrt {

// A cudaError_t. `bytes` is a multiple of 16, as the operator wants it; cudaErrorMisalignedAddress where `halves` is
// not.
int widen(const uint8_t* bytes, void* halves, int64_t count, CUstream_st* stream);

}  // namespace upsnet::tensorrt
