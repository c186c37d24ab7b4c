// TensorRT plugins PaddedNms and PaddedBatchedNms.
#include "nms/node.h"
#include "tensorrt/creators.h"
#include "tensorrt/plugin_base.h"

namespace upsnet::tensorrt {

nvinfer1::IPluginCreatorInterface* padded_nms_creator() { return creator<nms::NmsNode, 0>(); }
nvinfer1::IPluginCreatorInterface* padded_batched_nms_creator() { return creator<nms::NmsNode, 1>(); }

}  // namespace upsnet::tensorrt
