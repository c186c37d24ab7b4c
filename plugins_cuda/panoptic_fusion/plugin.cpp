// After step 3, for TensorRT alone: it calls launch.cu and turns the bytes of the map into fp16.
// TensorRT plugin PanopticFusion.
//
// TensorRT lets a uint8 network output come only from a Cast of fp16 or fp32, never from a plugin. So the node's
// panoptic is fp16 (exact for 0..255), and the graph casts it to uint8 after the node.
#include "panoptic_fusion/node.h"
#include "tensorrt/creators.h"
#include "tensorrt/plugin_base.h"
#include "tensorrt/widen.h"

namespace upsnet::tensorrt {
namespace {

struct PanopticFusion : panoptic_fusion::PanopticFusionNode {
  // The workspace holds the map in bytes, then the operator's own workspace.
  static int64_t num_pixels(const panoptic_fusion::Params& params) {
    return int64_t{16} * params.batch * params.height * params.width;
  }
  size_t workspace_size(const Call& call) const {
    return aligned(size_t(num_pixels(params(call)))) + Declared::workspace_size(call);
  }
  int launch(const Call& call, void* workspace, size_t bytes, CUstream_st* stream) const {
    panoptic_fusion::Params all = params(call);
    all.panoptic = static_cast<uint8_t*>(workspace);
    const size_t map = aligned(size_t(num_pixels(all)));
    const int status = panoptic_fusion::launch(all, all.panoptic + map, bytes - map, stream);
    return status != cudaSuccess ? status : widen(all.panoptic, call.output(0), num_pixels(all), stream);
  }
};

}  // namespace

nvinfer1::IPluginCreatorInterface* panoptic_fusion_creator() { return creator<PanopticFusion>(); }

}  // namespace upsnet::tensorrt
