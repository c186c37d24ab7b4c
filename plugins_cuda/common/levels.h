// run_cpu of a room, from its fronts at the three levels of x86-64 (exports.h).
#pragma once

#include "common/exports.h"
#include "common/pool.h"

namespace upsnet {

int cpu_level();  // 2, 3 or 4: the highest that this CPU and UPSNET_CPU_LEVEL allow (levels.cpp)

}  // namespace upsnet

#define UPSNET_ROOM(room)                                                                      \
  extern "C" int upsnet_##room##_cpu_v2(const ::upsnet::room::Params*, const ::upsnet::Pool*); \
  extern "C" int upsnet_##room##_cpu_v3(const ::upsnet::room::Params*, const ::upsnet::Pool*); \
  extern "C" int upsnet_##room##_cpu_v4(const ::upsnet::room::Params*, const ::upsnet::Pool*); \
  int upsnet::room::run_cpu(const Params& params, const Pool& pool) {                          \
    return ::upsnet::cpu_level() == 4   ? upsnet_##room##_cpu_v4(&params, &pool)               \
           : ::upsnet::cpu_level() == 3 ? upsnet_##room##_cpu_v3(&params, &pool)               \
                                        : upsnet_##room##_cpu_v2(&params, &pool);              \
  }
