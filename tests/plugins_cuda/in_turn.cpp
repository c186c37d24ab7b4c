// The CPU fronts, as libupsnet_cpu.so exports them, on a pool without threads: its slots run one after the other.
#include "best_anchors/launch.h"
#include "common/exports.h"
#include "common/pool.h"
#include "deform_conv/backward/launch.h"
#include "deform_conv/launch.h"
#include "nms/launch.h"
#include "panoptic_fusion/launch.h"
#include "roi_align_fpn/backward/launch.h"
#include "roi_align_fpn/launch.h"

namespace {

void run_in_turn(const upsnet::Pool&, int slots, void (*body)(void*, int), void* context) {
  for (int slot = slots - 1; slot >= 0; --slot) body(context, slot);
}

upsnet::Pool in_turn(int slots) { return {slots, run_in_turn}; }

}  // namespace

UPSNET_EXPORT_CPU(roi_align_fpn, in_turn)
UPSNET_EXPORT_CPU(roi_align_fpn_backward, in_turn)
UPSNET_EXPORT_CPU(nms, in_turn)
UPSNET_EXPORT_CPU(deform_conv, in_turn)
UPSNET_EXPORT_CPU(deform_conv_backward, in_turn)
UPSNET_EXPORT_CPU(panoptic_fusion, in_turn)
UPSNET_EXPORT_CPU(best_anchors, in_turn)
