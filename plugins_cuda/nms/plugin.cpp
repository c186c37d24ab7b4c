// TensorRT plugins PaddedNms and PaddedBatchedNms.
#include "nms/declared.h"
#include "tensorrt/creators.h"

namespace upsnet::tensorrt {
namespace {

struct Nms : nms::Declared {
  void check() const {
    Declared::check();
    require(max_output >= 1, "attribute max_output must be at least 1");
    require(max_output <= nms::kMost, "attribute max_output must be at most 2^30");
  }
};

}  // namespace

nvinfer1::IPluginCreatorInterface* padded_nms_creator() { return creator<Nms, 0>(); }
nvinfer1::IPluginCreatorInterface* padded_batched_nms_creator() { return creator<Nms, 1>(); }

}  // namespace upsnet::tensorrt
