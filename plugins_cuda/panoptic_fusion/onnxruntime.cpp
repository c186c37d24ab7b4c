// ONNX Runtime's operator PanopticFusion.
#include "panoptic_fusion/node.h"
#include "onnxruntime/operators.h"

namespace upsnet::onnxruntime {

void add_panoptic_fusion(Domain& domain) { domain.add<panoptic_fusion::PanopticFusionNode>(); }

}  // namespace upsnet::onnxruntime
