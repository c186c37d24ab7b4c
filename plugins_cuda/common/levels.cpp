// run_cpu of all rooms on x86-64, where a library holds each three times: for x86-64-v2 (SSE4.2), -v3 (AVX2) and -v4
// (AVX-512). The first call takes the highest that this CPU has; UPSNET_CPU_LEVEL=v2 or v3 is a ceiling.
#include <cstdlib>
#include <cstring>

#include "best_anchors/launch.h"
#include "common/levels.h"
#include "deform_conv/launch.h"
#include "nms/launch.h"
#include "panoptic_fusion/launch.h"
#include "roi_align_fpn/launch.h"

namespace {

// Feature by feature: GCC 11 does not know the levels' names here.
#define UPSNET_HAS __builtin_cpu_supports

bool has_v3() {
  return UPSNET_HAS("avx2") && UPSNET_HAS("bmi") && UPSNET_HAS("bmi2") && UPSNET_HAS("f16c") && UPSNET_HAS("fma") &&
         UPSNET_HAS("lzcnt") && UPSNET_HAS("movbe");
}

bool has_v4() {
  return has_v3() && UPSNET_HAS("avx512f") && UPSNET_HAS("avx512bw") && UPSNET_HAS("avx512cd") &&
         UPSNET_HAS("avx512dq") && UPSNET_HAS("avx512vl");
}

int chosen_level() {
  const char* const variable = std::getenv("UPSNET_CPU_LEVEL");
  const auto is_below = [variable](const char* level) { return variable && std::strcmp(variable, level) < 0; };
  if (has_v4() && !is_below("v4")) return 4;
  return has_v3() && !is_below("v3") ? 3 : 2;
}

}  // namespace

int upsnet::cpu_level() {
  static const int chosen = chosen_level();
  return chosen;
}

UPSNET_EXPORT int upsnet_cpu_level() { return upsnet::cpu_level(); }

UPSNET_ROOM(roi_align_fpn)
UPSNET_ROOM(nms)
UPSNET_ROOM(deform_conv)
UPSNET_ROOM(panoptic_fusion)
UPSNET_ROOM(best_anchors)
