// TensorRT plugin RoiAlignFpn.
#include "roi_align_fpn/declared.h"
#include "tensorrt/creators.h"

namespace upsnet::tensorrt {
namespace {

struct RoiAlignFpn : roi_align_fpn::Declared {
  void check() const {
    Declared::check();
    require(int64_t{output_size} * sampling_ratio <= roi_align_fpn::kMaxSamples,
            "attributes output_size and sampling_ratio must multiply to at most 1024");
  }
};

}  // namespace

nvinfer1::IPluginCreatorInterface* roi_align_fpn_creator() { return creator<RoiAlignFpn>(); }

}  // namespace upsnet::tensorrt
