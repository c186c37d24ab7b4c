// ONNX Runtime's operator RoiAlignFpn.
#include "roi_align_fpn/node.h"
#include "onnxruntime/operators.h"

namespace upsnet::onnxruntime {

void add_roi_align_fpn(Domain& domain) { domain.add<roi_align_fpn::RoiAlignFpnNode>(); }

}  // namespace upsnet::onnxruntime
