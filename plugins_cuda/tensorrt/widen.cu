// See widen.h. Reads 1 and writes 2 bytes a pixel, sixteen pixels a thread: 3 MB for an 800x1344 map.
#include "tensorrt/widen.h"

#include "common/cuda.h"

namespace upsnet::tensorrt {
namespace {

constexpr int kThreads = 256, kPerThread = 16;

__global__ void widen_kernel(const uint8_t* bytes, Half* halves, int64_t count) {
  const int64_t begin = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kPerThread;
  if (begin + kPerThread <= count) {
    union Bytes {
      uint4 vector;
      uint8_t values[kPerThread];
    };
    union Halves {
      uint4 vectors[2];
      uint16_t bits[kPerThread];
    };
    Bytes in;
    Halves out;
    in.vector = *reinterpret_cast<const uint4*>(bytes + begin);
    for (int i = 0; i < kPerThread; ++i) {
      const Half half = from_float<Half>(float(in.values[i]));
      std::memcpy(&out.bits[i], &half, sizeof half);
    }
    reinterpret_cast<uint4*>(halves + begin)[0] = out.vectors[0];
    reinterpret_cast<uint4*>(halves + begin)[1] = out.vectors[1];
  } else {
    for (int64_t i = begin; i < count; ++i) halves[i] = from_float<Half>(float(bytes[i]));
  }
}

}  // namespace

int widen(const uint8_t* bytes, void* halves, int64_t count, CUstream_st* stream) {
  if (count == 0) return cudaSuccess;
  if (!is_aligned(halves, sizeof(uint4))) return cudaErrorMisalignedAddress;
  const int64_t blocks = (count + kThreads * kPerThread - 1) / (kThreads * kPerThread);
  return launch_kernel(widen_kernel, dim3(unsigned(blocks)), dim3(kThreads), 0, stream, bytes,
                       static_cast<Half*>(halves), count);
}

}  // namespace upsnet::tensorrt
