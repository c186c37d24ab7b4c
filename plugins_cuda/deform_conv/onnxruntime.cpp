// ONNX Runtime's operators DeformConv2d and ModulatedDeformConv2d.
#include "deform_conv/node.h"
#include "onnxruntime/operators.h"

namespace upsnet::onnxruntime {

void add_deform_conv(Domain& domain) { domain.add<deform_conv::DeformConvNode>(); }

}  // namespace upsnet::onnxruntime
