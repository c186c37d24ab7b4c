// Bytes to fp16 numbers, for the one output that TensorRT does not take as bytes (../panoptic_fusion/plugin.cpp).
#pragma once

#include <cstdint>

struct CUstream_st;

namespace upsnet::tensorrt {

int widen(const uint8_t* bytes, void* halves, int64_t count, CUstream_st* stream);  // a cudaError_t

}  // namespace upsnet::tensorrt
