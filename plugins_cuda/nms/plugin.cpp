// TensorRT plugins PaddedNms and PaddedBatchedNms.
#include "nms/node.h"
#include "tensorrt/creators.h"
#include "tensorrt/plugin_base.h"

namespace upsnet::tensorrt {
namespace {

struct Nms : nms::NmsNode {
  void check() const {
    NmsNode::check();
    require(max_output >= 1, "attribute max_output must be at least 1");
  }
};

}  // namespace

nvinfer1::IPluginCreatorInterface* padded_nms_creator() { return creator<Nms, 0>(); }
nvinfer1::IPluginCreatorInterface* padded_batched_nms_creator() { return creator<Nms, 1>(); }

}  // namespace upsnet::tensorrt
