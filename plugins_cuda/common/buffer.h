// Memory of the CPU fronts that is not set to anything, aligned to a cache line.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace upsnet {

struct FreeBuffer {
  void operator()(float* memory) const { ::operator delete[](memory, std::align_val_t{64}); }
};
using Buffer = std::unique_ptr<float[], FreeBuffer>;

inline Buffer allocate(int64_t floats) { return Buffer(new (std::align_val_t{64}) float[floats]); }

}  // namespace upsnet
