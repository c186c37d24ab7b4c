// Every room's operators, defined in its onnxruntime.cpp.
#pragma once

#include "onnxruntime/operator.h"

namespace upsnet::onnxruntime {

void add_roi_align_fpn(Domain& domain);
void add_nms(Domain& domain);
void add_deform_conv(Domain& domain);
void add_panoptic_fusion(Domain& domain);
void add_best_anchors(Domain& domain);
void add_used_rows(Domain& domain);

}  // namespace upsnet::onnxruntime
