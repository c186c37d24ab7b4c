// The C interface that the PyTorch binding (../library.py) calls.
//
// UPSNET_EXPORT_CPU(room, pool_of) in openmp.cpp, UPSNET_EXPORT_CUDA(room) in launch.cu; both give the layout of the
// params struct, so that a binding whose idea of it differs is refused. UPSNET_CPU_FRONT(room) ends a cpu.cpp: compiled
// for one level of x86-64 among others (UPSNET_CPU_LEVEL=v3), its run_cpu is seen as upsnet_<room>_cpu_v3, and
// levels.cpp has the run_cpu that chooses.
#pragma once

#include <cstddef>
#include <string>

#include "common/types.h"

namespace upsnet {

// "boxes:0:8 scores:8:8 ": name, offset and size of every member.
template <size_t kCount>
std::string layout_of(const Member (&members)[kCount]) {
  std::string text;
  for (const Member& member : members) {
    text.append(member.name).append(":").append(std::to_string(member.offset)).append(":");
    text.append(std::to_string(member.size)).append(" ");
  }
  return text;
}

}  // namespace upsnet

#define UPSNET_EXPORT extern "C" __attribute__((visibility("default")))

#define UPSNET_EXPORT_LAYOUT(room)                                                   \
  UPSNET_EXPORT const char* upsnet_##room##_params_layout() {                        \
    static const std::string layout = ::upsnet::layout_of(::upsnet::room::kMembers); \
    return layout.c_str();                                                           \
  }

#ifdef UPSNET_CPU_LEVEL
#define UPSNET_CPU_FRONT_AT(room, level)                                                                         \
  extern "C" int upsnet_##room##_cpu_##level(const ::upsnet::room::Params* params, const ::upsnet::Pool* pool) { \
    return ::upsnet::room::run_cpu(*params, *pool);                                                              \
  }
#define UPSNET_CPU_FRONT_EXPANDED(room, level) UPSNET_CPU_FRONT_AT(room, level)
#define UPSNET_CPU_FRONT(room) UPSNET_CPU_FRONT_EXPANDED(room, UPSNET_CPU_LEVEL)
#else
#define UPSNET_CPU_FRONT(room)
#endif

#define UPSNET_EXPORT_CPU(room, pool_of)                                                     \
  UPSNET_EXPORT_LAYOUT(room)                                                                 \
  UPSNET_EXPORT int upsnet_##room##_cpu(const ::upsnet::room::Params* params, int threads) { \
    return ::upsnet::room::run_cpu(*params, pool_of(threads));                               \
  }

#define UPSNET_EXPORT_CUDA(room)                                                                                \
  UPSNET_EXPORT_LAYOUT(room)                                                                                    \
  UPSNET_EXPORT size_t upsnet_##room##_workspace_size(const ::upsnet::room::Params* params) {                   \
    return ::upsnet::room::workspace_size(*params);                                                             \
  }                                                                                                             \
  UPSNET_EXPORT int upsnet_##room##_launch(const ::upsnet::room::Params* params, void* workspace, size_t bytes, \
                                           CUstream_st* stream) {                                               \
    return ::upsnet::room::launch(*params, workspace, bytes, stream);                                           \
  }
