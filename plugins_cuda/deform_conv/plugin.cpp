// TensorRT plugins DeformConv2d and ModulatedDeformConv2d.
#include "deform_conv/node.h"
#include "tensorrt/creators.h"
#include "tensorrt/plugin_base.h"

namespace upsnet::tensorrt {

nvinfer1::IPluginCreatorInterface* deform_conv_creator() { return creator<deform_conv::DeformConvNode, 0>(); }
nvinfer1::IPluginCreatorInterface* modulated_deform_conv_creator() { return creator<deform_conv::DeformConvNode, 1>(); }

}  // namespace upsnet::tensorrt
