// TensorRT plugins DeformConv2d (x, offset, weight, bias) and ModulatedDeformConv2d (the same and mask) -> y.
#include <algorithm>
#include <array>

#include "deform_conv/launch.h"
#include "tensorrt/creators.h"
#include "tensorrt/plugin_base.h"

namespace upsnet::tensorrt {
namespace {

namespace room = upsnet::deform_conv;
using nvinfer1::Dims;

struct Convolution {
  static constexpr Tensor kOutputs[] = {{"y", "B O Ho Wo", Type::kLikeFirstInput, true}};
  static constexpr int32_t kOffset = 1, kWeight = 2, kBias = 3, kMask = 4;

  std::array<int32_t, 2> strides{}, dilations{};
  std::array<int32_t, 4> pads{};  // top, left, bottom, right
  int32_t group = 1, offset_group = 1;

  template <typename Self, typename Visitor>
  static void attributes(Self& self, Visitor& visitor) {
    visitor.required("strides", self.strides);
    visitor.required("pads", self.pads);
    visitor.required("dilations", self.dilations);
    visitor.optional("group", self.group);
    visitor.optional("offset_group", self.offset_group);
  }

  void check() const {
    require(strides[0] >= 1 && strides[1] >= 1, "attribute strides must be at least 1");
    require(dilations[0] >= 1 && dilations[1] >= 1, "attribute dilations must be at least 1");
    require(*std::min_element(pads.begin(), pads.end()) >= 0, "attribute pads must not be negative");
    require(group >= 1, "attribute group must be at least 1");
    require(offset_group >= 1, "attribute offset_group must be at least 1");
  }

  void check_sizes(const Dims* in) const {
    const Dims &x = in[0], &offset = in[kOffset], &weight = in[kWeight];
    require(x.d[1] == weight.d[1] * group, "x's channels are not weight's channels times group");
    require(weight.d[0] % group == 0, "weight's output channels do not divide into group");
    require(x.d[1] % offset_group == 0, "x's channels do not divide into offset_group");
    require(offset.d[1] == 2 * offset_group * taps(in), "offset's channels are not 2 * offset_group * kernel size");
    for (int32_t axis = 0; axis < 2; ++axis) {
      const int64_t reach = int64_t{dilations[axis]} * (weight.d[2 + axis] - 1) + 1;
      const int64_t room_left = x.d[2 + axis] + pads[axis] + pads[2 + axis] - reach;
      require(room_left >= 0, "the kernel is larger than the padded x");
      require(offset.d[2 + axis] == room_left / strides[axis] + 1, "offset's height and width are not the output's");
    }
  }
  static int64_t taps(const Dims* in) { return in[kWeight].d[2] * in[kWeight].d[3]; }

  void output_shapes(const nvinfer1::DimsExprs* in, nvinfer1::DimsExprs* out, Expressions&) const {
    const auto& offset = in[kOffset].d;
    out[0] = Expressions::shape(in[0].d[0], in[kWeight].d[0], offset[2], offset[3]);
  }

  room::Params params(const Call& call) const {
    room::Params params{};
    params.input = call.input(0);
    params.offset = call.input<float>(kOffset);
    params.weight = call.input(kWeight);
    params.bias = call.input<float>(kBias);
    params.output = call.output(0);
    params.type = call.type(0);
    params.layout = call.layout(0);
    params.batch = call.size(0, 0);
    params.channels = call.size(0, 1);
    params.height = call.size(0, 2);
    params.width = call.size(0, 3);
    params.out_channels = call.size(kWeight, 0);
    params.out_height = call.size(kOffset, 2);
    params.out_width = call.size(kOffset, 3);
    params.kernel_h = call.size(kWeight, 2);
    params.kernel_w = call.size(kWeight, 3);
    params.stride_h = strides[0];
    params.stride_w = strides[1];
    params.pad_h = pads[0];
    params.pad_w = pads[1];
    params.dilation_h = dilations[0];
    params.dilation_w = dilations[1];
    params.groups = group;
    params.offset_groups = offset_group;
    return params;
  }
};

struct DeformConv2d : Convolution {
  static constexpr const char* kName = "DeformConv2d";
  static constexpr Tensor kInputs[] = {{"x", "B C H W", Type::kFeatures, true},
                                       {"offset", "B offsets Ho Wo", Type::kFloat32},
                                       {"weight", "O D kh kw", Type::kLikeFirstInput},
                                       {"bias", "O", Type::kFloat32}};

  size_t workspace_size(const Call& call) const { return room::workspace_size(params(call)); }
  int launch(const Call& call, void* workspace, CUstream_st* stream) const {
    return room::launch(params(call), workspace, stream);
  }
};

struct ModulatedDeformConv2d : Convolution {
  static constexpr const char* kName = "ModulatedDeformConv2d";
  static constexpr Tensor kInputs[] = {DeformConv2d::kInputs[0],
                                       DeformConv2d::kInputs[1],
                                       DeformConv2d::kInputs[2],
                                       DeformConv2d::kInputs[3],
                                       {"mask", "B masks Ho Wo", Type::kFloat32}};

  void check_sizes(const Dims* in) const {
    Convolution::check_sizes(in);
    require(in[kMask].d[1] == offset_group * taps(in), "mask's channels are not offset_group * kernel size");
  }

  // Without data there is no mask to see: enough for either way.
  size_t workspace_size(const Call& call) const {
    room::Params plain = params(call), modulated = plain;
    static constexpr float kAny = 0;
    modulated.mask = &kAny;
    return std::max(room::workspace_size(plain), room::workspace_size(modulated));
  }
  int launch(const Call& call, void* workspace, CUstream_st* stream) const {
    room::Params modulated = params(call);
    modulated.mask = call.input<float>(kMask);
    return room::launch(modulated, workspace, stream);
  }
};

}  // namespace

nvinfer1::IPluginCreatorInterface* deform_conv_creator() { return creator<DeformConv2d>(); }
nvinfer1::IPluginCreatorInterface* modulated_deform_conv_creator() { return creator<ModulatedDeformConv2d>(); }

}  // namespace upsnet::tensorrt
