// ONNX Runtime's operators PaddedNms and PaddedBatchedNms.
#include "nms/node.h"
#include "onnxruntime/operators.h"

namespace upsnet::onnxruntime {

void add_nms(Domain& domain) { domain.add<nms::NmsNode>(); }

}  // namespace upsnet::onnxruntime
