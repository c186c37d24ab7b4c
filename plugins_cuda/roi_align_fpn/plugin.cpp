// TensorRT plugin RoiAlignFpn: P2, P3, P4, P5, rois -> pooled features.
#include <string>

#include "roi_align_fpn/launch.h"
#include "tensorrt/creators.h"
#include "tensorrt/plugin_base.h"

namespace upsnet::tensorrt {
namespace {

namespace room = upsnet::roi_align_fpn;

struct RoiAlignFpn {
  static constexpr const char* kName = "RoiAlignFpn";
  static constexpr Tensor kInputs[] = {
      {"P2", "B C H2 W2", Type::kFeatures, true},
      {"P3", "B C H3 W3", Type::kLikeFirstInput, true},
      {"P4", "B C H4 W4", Type::kLikeFirstInput, true},
      {"P5", "B C H5 W5", Type::kLikeFirstInput, true},
      {"rois", "B R 4", Type::kFloat32},
  };
  static constexpr Tensor kOutputs[] = {{"pooled", "B R C S S", Type::kLikeFirstInput}};
  static constexpr int32_t kRois = room::kLevels;

  int32_t output_size = 0, sampling_ratio = 0, inclusive = 0;
  float canonical_size = 0;
  std::string coordinate_transformation_mode;

  template <typename Self, typename Visitor>
  static void attributes(Self& self, Visitor& visitor) {
    visitor.required("output_size", self.output_size);
    visitor.required("sampling_ratio", self.sampling_ratio);
    visitor.required("coordinate_transformation_mode", self.coordinate_transformation_mode);
    visitor.required("canonical_size", self.canonical_size);
    visitor.required("inclusive", self.inclusive);
  }

  void check() const {
    require(output_size >= 1, "attribute output_size must be at least 1");
    require(sampling_ratio >= 1, "attribute sampling_ratio must be at least 1");
    require(int64_t{output_size} * sampling_ratio <= room::kMaxSamples,
            "attributes output_size and sampling_ratio must multiply to at most 1024");
    require(canonical_size > 0, "attribute canonical_size must be positive");
    require(is_aligned() || coordinate_transformation_mode == "output_half_pixel",
            "attribute coordinate_transformation_mode must be half_pixel or output_half_pixel");
  }
  void check_sizes(const nvinfer1::Dims*) const {}
  bool is_aligned() const { return coordinate_transformation_mode == "half_pixel"; }

  void output_shapes(const nvinfer1::DimsExprs* in, nvinfer1::DimsExprs* out, Expressions& dims) const {
    const auto* side = dims.constant(output_size);
    out[0] = Expressions::shape(in[kRois].d[0], in[kRois].d[1], in[0].d[1], side, side);
  }

  room::Params params(const Call& call) const {
    room::Params params{};
    for (int32_t level = 0; level < room::kLevels; ++level) {
      params.features[level] = call.input(level);
      params.heights[level] = call.size(level, 2);
      params.widths[level] = call.size(level, 3);
    }
    params.rois = call.input<float>(kRois);
    params.output = call.output(0);
    params.type = call.type(0);
    params.layout = call.layout(0);
    params.batch = call.size(0, 0);
    params.channels = call.size(0, 1);
    params.rois_per_image = call.size(kRois, 1);
    params.output_size = output_size;
    params.sampling_ratio = sampling_ratio;
    params.is_aligned = is_aligned();
    params.inclusive = inclusive;
    params.canonical_size = canonical_size;
    return params;
  }
  size_t workspace_size(const Call& call) const { return room::workspace_size(params(call)); }
  int launch(const Call& call, void* workspace, CUstream_st* stream) const {
    return room::launch(params(call), workspace, stream);
  }
};

}  // namespace

nvinfer1::IPluginCreatorInterface* roi_align_fpn_creator() { return creator<RoiAlignFpn>(); }

}  // namespace upsnet::tensorrt
