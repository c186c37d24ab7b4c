#include "tensorrt/enqueue_cases.h"

#include <random>

#include "deform_conv/params.h"
#include "nms/params.h"
#include "panoptic_fusion/params.h"
#include "roi_align_fpn/params.h"

// What common/exports.h exports from the plugin library, too.
#define UPSNET_IMPORT(room)                                                                                            \
  extern "C" size_t upsnet_##room##_workspace_size(const upsnet::room::Params*);                                       \
  extern "C" int upsnet_##room##_launch(const upsnet::room::Params*, void*, size_t, CUstream_st*);                     \
  static size_t workspace_size(const upsnet::room::Params& params) { return upsnet_##room##_workspace_size(&params); } \
  static int launch(const upsnet::room::Params& params, void* workspace, size_t bytes) {                               \
    return upsnet_##room##_launch(&params, workspace, bytes, nullptr);                                                 \
  }

UPSNET_IMPORT(roi_align_fpn)
UPSNET_IMPORT(nms)
UPSNET_IMPORT(deform_conv)
UPSNET_IMPORT(panoptic_fusion)

namespace upsnet::tensorrt {
namespace {

using nvinfer1::DataType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using Shape = std::vector<int64_t>;

constexpr int32_t kMaskSize = 28, kPooled = 7, kSampling = 2;
constexpr float kIou = 0.5f, kScore = 0.1f, kAreaLimit = 50, kOverlap = 0.3f;

double random_number() {
  static std::mt19937 generator;  // the same numbers everywhere, in the order of asking
  return generator() / 4294967296.0;
}

template <int kLow, int kHigh>
Values uniform(const Setting&, const Size&, int64_t count) {
  Values values(count);
  for (double& value : values) value = kLow + (kHigh - kLow) * random_number();
  return values;
}

// x1 y1 x2 y2, some of them over the edge.
Values boxes(const Setting&, const Size& size, int64_t count) {
  Values values(count);
  const double sides[] = {4.0 * size.width, 4.0 * size.height};
  for (int64_t i = 0; i < count; ++i) {
    const double side = sides[i % 2];
    values[i] = i % 4 < 2 ? side * random_number() : values[i - 2] + side / 2 * random_number();
  }
  return values;
}

Values classes(const Setting& setting, const Size&, int64_t count) {
  Values values(count);
  for (double& value : values) value = int64_t(setting.things * random_number());
  return values;
}

// Instances come sorted.
Values sorted_scores(const Setting& setting, const Size&, int64_t count) {
  Values values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = 1 - double(i % setting.detections) / (setting.detections + 1);
  return values;
}

Values counts(const Setting& setting, const Size&, int64_t count) {
  Values values(count, double(setting.detections));
  values.back() = double(setting.detections / 2);
  return values;
}

// The photos inside the padding.
Values photo_sizes(const Setting&, const Size& size, int64_t count) {
  Values values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = double(4 * (i % 2 ? size.width : size.height) - i);
  return values;
}

template <int kLevel>
Shape feature_map(const Setting& setting, const Size& size) {
  return {size.batch, setting.channels, size.height >> (kLevel - 2), size.width >> (kLevel - 2)};
}
template <int kChannels>
Shape beside_p4(const Setting&, const Size& size) {
  return {size.batch, kChannels, size.height / 4, size.width / 4};
}
Shape box_list(const Setting&, const Size& size) { return {size.batch, size.boxes, 4}; }
Shape box_row(const Setting&, const Size& size) { return {size.batch, size.boxes}; }
Shape weight_shape(const Setting& setting, const Size&) { return {setting.channels, setting.channels, 3, 3}; }
Shape bias_shape(const Setting& setting, const Size&) { return {setting.channels}; }
Shape semantic_shape(const Setting& setting, const Size& size) {
  return {size.batch, setting.stuff + setting.things, size.height, size.width};
}
Shape instance_list(const Setting& setting, const Size& size) { return {size.batch, setting.detections, 4}; }
Shape instance_row(const Setting& setting, const Size& size) { return {size.batch, setting.detections}; }
Shape mask_shape(const Setting& setting, const Size& size) {
  return {size.batch, setting.detections, kMaskSize, kMaskSize};
}
Shape image_pair(const Setting&, const Size& size) { return {size.batch, 2}; }
Shape image_row(const Setting&, const Size& size) { return {size.batch}; }

// make(run): the parameters. The operator and a plugin get the same pointers, but nothing of what a plugin makes of
// them.
template <typename Make>
Case with(Case made, Make make) {
  made.workspace_size = [make](const Run& run) { return ::workspace_size(make(run)); };
  made.launch = [make](const Run& run, void* workspace, size_t bytes) { return ::launch(make(run), workspace, bytes); };
  return made;
}

// sampling: 0 where samples are counted, as detectron2 does it.
Case roi_align_fpn_case(int32_t sampling) {
  const Input rois{DataType::kFLOAT, box_list, boxes};
  Case made{"RoiAlignFpn",
            {{"output_size", kPooled},
             {"sampling_ratio", sampling},
             {"coordinate_transformation_mode", "half_pixel"},
             {"inclusive", sampling > 0},
             {"rounded_levels", sampling == 0}},
            {{DataType::kHALF, feature_map<2>, uniform<-1, 1>, true},
             {DataType::kHALF, feature_map<3>, uniform<-1, 1>, true},
             {DataType::kHALF, feature_map<4>, uniform<-1, 1>, true},
             {DataType::kHALF, feature_map<5>, uniform<-1, 1>, true},
             rois}};
  return with(made, [sampling](const Run& run) {
    roi_align_fpn::Params params{};
    for (int level = 0; level < 4; ++level) {
      params.features[level] = run.inputs[level];
      params.heights[level] = run.size(level, 2);
      params.widths[level] = run.size(level, 3);
    }
    params.rois = run.input<float>(4);
    params.output = run.outputs[0];
    params.features_type = run.type;
    params.features_layout = run.layout;
    params.batch = run.size(0, 0);
    params.channels = run.size(0, 1);
    params.rois_per_image = run.size(4, 1);
    params.output_size = kPooled;
    params.sampling_ratio = sampling;
    params.aligned = 1;
    params.inclusive = sampling > 0;
    params.rounded_levels = sampling == 0;
    return params;
  });
}

Case nms_case(const char* node, bool batched, int32_t max_output) {
  Case made{node,
            {{"iou_threshold", kIou}, {"score_threshold", kScore}, {"max_output", max_output}},
            {{DataType::kFLOAT, box_list, boxes}, {DataType::kFLOAT, box_row, uniform<0, 1>}}};
  if (batched) made.inputs.push_back({DataType::kINT64, box_row, classes});
  return with(made, [max_output](const Run& run) {
    nms::Params params{};
    params.boxes = run.input<float>(0);
    params.scores = run.input<float>(1);
    params.classes = run.input<int64_t>(2);
    params.indices = run.output<int64_t>(0);
    params.counts = run.output<int32_t>(1);
    params.batch = run.size(0, 0);
    params.num_boxes = run.size(0, 1);
    params.iou_threshold = kIou;
    params.score_threshold = kScore;
    params.max_output = max_output;
    return params;
  });
}

Case deform_conv_case(const char* node, bool modulated) {
  Case made{node,
            {{"strides", {1, 1}}, {"pads", {1, 1, 1, 1}}, {"dilations", {1, 1}}},
            {{DataType::kHALF, feature_map<4>, uniform<-1, 1>, true},
             {DataType::kFLOAT, beside_p4<18>, uniform<-2, 2>},
             {DataType::kHALF, weight_shape, uniform<-1, 1>},
             {DataType::kFLOAT, bias_shape, uniform<-1, 1>}}};
  if (modulated) made.inputs.push_back({DataType::kFLOAT, beside_p4<9>, uniform<0, 1>});
  return with(made, [](const Run& run) {
    deform_conv::Params params{};
    params.x = run.inputs[0];
    params.offset = run.input<float>(1);
    params.weight = run.inputs[2];
    params.bias = run.input<float>(3);
    params.mask = run.input<float>(4);
    params.output = run.outputs[0];
    params.x_type = run.type;
    params.x_layout = run.layout;
    params.batch = run.size(0, 0);
    params.channels = params.out_channels = run.size(0, 1);
    params.height = params.out_height = run.size(0, 2);
    params.width = params.out_width = run.size(0, 3);
    params.kernel_h = params.kernel_w = 3;
    for (int axis = 0; axis < 2; ++axis) params.stride[axis] = params.padding[axis] = params.dilation[axis] = 1;
    params.group = params.offset_group = 1;
    return params;
  });
}

Case panoptic_fusion_case(int32_t stuff, bool heuristic) {
  Case made{"PanopticFusion",
            {{"num_stuff", stuff},
             {"stuff_area_limit", kAreaLimit},
             {"mask_overlap_threshold", kOverlap},
             {"merge", heuristic ? "heuristic" : "logits"}},
            {{DataType::kHALF, semantic_shape, uniform<-4, 4>, true},
             {DataType::kFLOAT, instance_list, boxes},
             {DataType::kINT64, instance_row, classes},
             {DataType::kFLOAT, instance_row, sorted_scores},
             {DataType::kHALF, mask_shape, uniform<-4, 4>},
             {DataType::kINT32, image_row, counts},
             {DataType::kINT32, image_pair, photo_sizes},
             {DataType::kFLOAT, image_row, uniform<1, 2>}},
            true};
  return with(made, [stuff, heuristic](const Run& run) {
    panoptic_fusion::Params params{};
    params.semantic = run.inputs[0];
    params.boxes = run.input<float>(1);
    params.classes = run.input<int64_t>(2);
    params.scores = run.input<float>(3);
    params.mask_logits = run.inputs[4];
    params.counts = run.input<int32_t>(5);
    params.sizes = run.input<int32_t>(6);
    params.scales = run.input<float>(7);
    params.panoptic = run.output<uint8_t>(0);
    params.segments = run.output<float>(1);
    params.segment_count = run.output<int32_t>(2);
    params.semantic_type = params.mask_logits_type = run.type;
    params.semantic_layout = run.layout;
    params.batch = run.size(0, 0);
    params.num_things = run.size(0, 1) - stuff;
    params.height = run.size(0, 2);
    params.width = run.size(0, 3);
    params.detections = run.size(1, 1);
    params.mask_size = kMaskSize;
    params.num_stuff = stuff;
    params.stuff_area_limit = kAreaLimit;
    params.mask_overlap_threshold = kOverlap;
    params.heuristic = heuristic;
    return params;
  });
}

}  // namespace

PluginField Attribute::field() const {
  if (!text.empty()) return {name.c_str(), text.data(), PluginFieldType::kCHAR, int32_t(text.size())};
  if (numbers.empty()) return {name.c_str(), &number, PluginFieldType::kFLOAT32, 1};
  return {name.c_str(), numbers.data(), PluginFieldType::kINT32, int32_t(numbers.size())};
}

std::vector<Case> all_cases(const Setting& setting) {
  const auto kept = int32_t(setting.detections);
  return {roi_align_fpn_case(kSampling),
          roi_align_fpn_case(0),
          nms_case("PaddedNms", false, kept),
          nms_case("PaddedBatchedNms", true, kept),
          deform_conv_case("DeformConv2d", false),
          deform_conv_case("ModulatedDeformConv2d", true),
          panoptic_fusion_case(int32_t(setting.stuff), false),
          panoptic_fusion_case(int32_t(setting.stuff), true)};
}

}  // namespace upsnet::tensorrt
