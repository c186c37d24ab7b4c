// ONNX Runtime's operator BestAnchors.
#include "best_anchors/node.h"
#include "onnxruntime/operators.h"

namespace upsnet::onnxruntime {

void add_best_anchors(Domain& domain) { domain.add_for_cpu<best_anchors::BestAnchorsNode>(); }

}  // namespace upsnet::onnxruntime
