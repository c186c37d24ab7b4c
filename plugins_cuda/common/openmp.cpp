// libupsnet_cpu.so's C interface, which the PyTorch binding (../library.py) calls: the CPU fronts on OpenMP's threads,
// which PyTorch uses, too.
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

void run_on_openmp(const upsnet::Pool&, int slots, void (*body)(void*, int), void* context) {
#pragma omp parallel for num_threads(slots) schedule(static, 1)
  for (int slot = 0; slot < slots; ++slot) body(context, slot);
}

upsnet::Pool openmp(int threads) { return {threads, run_on_openmp}; }

}  // namespace

UPSNET_EXPORT_CPU(roi_align_fpn, openmp)
UPSNET_EXPORT_CPU(nms, openmp)
UPSNET_EXPORT_CPU(deform_conv, openmp)
UPSNET_EXPORT_CPU(panoptic_fusion, openmp)
UPSNET_EXPORT_CPU(best_anchors, openmp)
UPSNET_EXPORT_CPU(roi_align_fpn_backward, openmp)
UPSNET_EXPORT_CPU(deform_conv_backward, openmp)
