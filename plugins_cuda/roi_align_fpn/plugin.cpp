// TensorRT plugin RoiAlignFpn.
#include "roi_align_fpn/node.h"
#include "tensorrt/creators.h"
#include "tensorrt/plugin_base.h"

namespace upsnet::tensorrt {

nvinfer1::IPluginCreatorInterface* roi_align_fpn_creator() { return creator<roi_align_fpn::RoiAlignFpnNode>(); }

}  // namespace upsnet::tensorrt
