// TensorRT plugin PanopticFusion: logits and detections -> panoptic, segments, segment_count.
//
// TensorRT lets a uint8 network output come only from a Cast of fp16 or fp32, never from a plugin. So the node's
// panoptic is fp16 (exact for 0..255), and the graph casts it to uint8 after the node.
#include "panoptic_fusion/launch.h"
#include "tensorrt/creators.h"
#include "tensorrt/plugin_base.h"
#include "tensorrt/widen.h"

namespace upsnet::tensorrt {
namespace {

namespace room = upsnet::panoptic_fusion;
using nvinfer1::Dims;

enum Input : int32_t { kSemantic, kBoxes, kClasses, kScores, kMaskLogits, kCounts, kSizes, kScales };

struct PanopticFusion {
  static constexpr const char* kName = "PanopticFusion";
  static constexpr Tensor kInputs[] = {
      {"semantic", "B C h w", Type::kFeatures, true},
      {"boxes", "B N 4", Type::kFloat32},
      {"classes", "B N", Type::kInt64},
      {"scores", "B N", Type::kFloat32},
      {"mask_logits", "B N M M", Type::kFeatures},
      {"counts", "B", Type::kInt32},
      {"sizes", "B 2", Type::kInt32},
      {"scales", "B", Type::kFloat32},
  };
  static constexpr Tensor kOutputs[] = {{"panoptic", "B 4*h 4*w", Type::kFloat16},
                                        {"segments", "B S+N 7", Type::kFloat32},
                                        {"segment_count", "B", Type::kInt32}};

  int32_t num_stuff = 0;
  float stuff_area_limit = 0, mask_overlap_threshold = 0;

  template <typename Self, typename Visitor>
  static void attributes(Self& self, Visitor& visitor) {
    visitor.required("num_stuff", self.num_stuff);
    visitor.required("stuff_area_limit", self.stuff_area_limit);
    visitor.required("mask_overlap_threshold", self.mask_overlap_threshold);
  }

  void check() const {
    require(num_stuff >= 0, "attribute num_stuff must not be negative");
    require(stuff_area_limit == stuff_area_limit, "attribute stuff_area_limit is NaN");
    require(mask_overlap_threshold == mask_overlap_threshold, "attribute mask_overlap_threshold is NaN");
  }
  void check_sizes(const Dims* in) const {
    require(in[kSemantic].d[1] >= num_stuff, "semantic has fewer channels than num_stuff");
    require(num_stuff + in[kBoxes].d[1] <= 255, "num_stuff and the detections do not fit a uint8 map (255)");
  }

  void output_shapes(const nvinfer1::DimsExprs* in, nvinfer1::DimsExprs* out, Expressions& dims) const {
    const auto& semantic = in[kSemantic].d;
    out[0] = Expressions::shape(semantic[0], dims.product(semantic[2], 4), dims.product(semantic[3], 4));
    out[1] = Expressions::shape(semantic[0], dims.sum(in[kBoxes].d[1], num_stuff), dims.constant(7));
    out[2] = Expressions::shape(semantic[0]);
  }

  room::Params params(const Call& call) const {
    room::Params params{};
    params.semantic = call.input(kSemantic);
    params.boxes = call.input<float>(kBoxes);
    params.classes = call.input<int64_t>(kClasses);
    params.scores = call.input<float>(kScores);
    params.mask_logits = call.input(kMaskLogits);
    params.counts = call.input<int32_t>(kCounts);
    params.sizes = call.input<int32_t>(kSizes);
    params.scales = call.input<float>(kScales);
    params.segments = call.output<float>(1);
    params.segment_count = call.output<int32_t>(2);
    params.semantic_type = call.type(kSemantic);
    params.semantic_layout = call.layout(kSemantic);
    params.mask_type = call.type(kMaskLogits);
    params.batch = call.size(kSemantic, 0);
    params.num_stuff = num_stuff;
    params.num_things = call.size(kSemantic, 1) - num_stuff;
    params.height = call.size(kSemantic, 2);
    params.width = call.size(kSemantic, 3);
    params.detections = call.size(kBoxes, 1);
    params.mask_size = call.size(kMaskLogits, 2);
    params.stuff_area_limit = stuff_area_limit;
    params.mask_overlap_threshold = mask_overlap_threshold;
    return params;
  }

  // The workspace holds the map in bytes, then the operator's own workspace.
  static int64_t num_pixels(const room::Params& params) {
    return int64_t{16} * params.batch * params.height * params.width;
  }
  size_t workspace_size(const Call& call) const {
    const room::Params sizes = params(call);
    return aligned(size_t(num_pixels(sizes))) + room::workspace_size(sizes);
  }
  int launch(const Call& call, void* workspace, CUstream_st* stream) const {
    room::Params all = params(call);
    all.panoptic = static_cast<uint8_t*>(workspace);
    const int status = room::launch(all, all.panoptic + aligned(size_t(num_pixels(all))), stream);
    return status != cudaSuccess ? status : widen(all.panoptic, call.output(0), num_pixels(all), stream);
  }
};

}  // namespace

nvinfer1::IPluginCreatorInterface* panoptic_fusion_creator() { return creator<PanopticFusion>(); }

}  // namespace upsnet::tensorrt
