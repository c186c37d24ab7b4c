// Element types and memory layouts that every operator's parameters name.
#pragma once

#include <cstddef>
#include <cstdint>

struct CUstream_st;  // cudaStream_t is a pointer to it: launch.h needs no CUDA header

namespace upsnet {

struct Pool;  // pool.h: the threads of a CPU front

enum class DType : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };
constexpr DType kFloat64{3};                           // of gradients alone
enum class Layout : int32_t { kNCHW = 0, kNHWC = 1 };  // kNHWC: torch.channels_last, TensorRT's kHWC

inline size_t element_size(DType type) { return type == kFloat64 ? 8 : type == DType::kFloat32 ? 4 : 2; }

// Workspaces are cut into slices that begin on this boundary, in bytes.
constexpr size_t kAlignment = 256;
inline size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

inline bool is_aligned(const void* pointer, size_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

// A member of a params struct, for who lays the struct out again (exports.h).
struct Member {
  const char* name;
  size_t offset, size;
};
#define UPSNET_MEMBER(Struct, name) {#name, offsetof(Struct, name), sizeof(Struct::name)}

}  // namespace upsnet
