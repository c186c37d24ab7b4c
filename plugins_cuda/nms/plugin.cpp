// TensorRT plugins PaddedNms (boxes, scores) and PaddedBatchedNms (boxes, scores, classes) -> indices, counts.
#include <algorithm>

#include "nms/launch.h"
#include "tensorrt/creators.h"
#include "tensorrt/plugin_base.h"

namespace upsnet::tensorrt {
namespace {

namespace room = upsnet::nms;

struct Nms {
  static constexpr Tensor kOutputs[] = {{"indices", "B K", Type::kInt64}, {"counts", "B", Type::kInt32}};

  float iou_threshold = 0, score_threshold = 0;
  int32_t max_output = 0, top_k = 0, inclusive = 0;

  template <typename Self, typename Visitor>
  static void attributes(Self& self, Visitor& visitor) {
    visitor.required("iou_threshold", self.iou_threshold);
    visitor.required("score_threshold", self.score_threshold);
    visitor.required("max_output", self.max_output);
    visitor.optional("top_k", self.top_k);
    visitor.optional("inclusive", self.inclusive);
  }

  void check() const {
    require(iou_threshold == iou_threshold, "attribute iou_threshold is NaN");
    require(score_threshold == score_threshold, "attribute score_threshold is NaN");
    require(max_output >= 1, "attribute max_output must be at least 1");
    require(top_k >= 0, "attribute top_k must not be negative");
  }
  void check_sizes(const nvinfer1::Dims*) const {}

  void output_shapes(const nvinfer1::DimsExprs* in, nvinfer1::DimsExprs* out, Expressions& dims) const {
    out[0] = Expressions::shape(in[0].d[0], dims.constant(max_output));
    out[1] = Expressions::shape(in[0].d[0]);
  }

  room::Params params(const Call& call) const {
    room::Params params{};
    params.boxes = call.input<float>(0);
    params.scores = call.input<float>(1);
    params.indices = call.output<int64_t>(0);
    params.counts = call.output<int32_t>(1);
    params.batch = call.size(0, 0);
    params.num_boxes = call.size(0, 1);
    params.max_output = max_output;
    params.top_k = top_k;
    params.inclusive = inclusive;
    params.iou_threshold = iou_threshold;
    params.score_threshold = score_threshold;
    return params;
  }
};

struct PaddedNms : Nms {
  static constexpr const char* kName = "PaddedNms";
  static constexpr Tensor kInputs[] = {{"boxes", "B N 4", Type::kFloat32}, {"scores", "B N", Type::kFloat32}};

  size_t workspace_size(const Call& call) const { return room::workspace_size(params(call)); }
  int launch(const Call& call, void* workspace, CUstream_st* stream) const {
    return room::launch(params(call), workspace, stream);
  }
};

struct PaddedBatchedNms : Nms {
  static constexpr const char* kName = "PaddedBatchedNms";
  static constexpr Tensor kInputs[] = {
      {"boxes", "B N 4", Type::kFloat32}, {"scores", "B N", Type::kFloat32}, {"classes", "B N", Type::kInt64}};

  // Without data there are no classes to see: enough for either way.
  size_t workspace_size(const Call& call) const {
    room::Params agnostic = params(call), aware = agnostic;
    static constexpr int64_t kAny = 0;
    aware.classes = &kAny;
    return std::max(room::workspace_size(agnostic), room::workspace_size(aware));
  }
  int launch(const Call& call, void* workspace, CUstream_st* stream) const {
    room::Params aware = params(call);
    aware.classes = call.input<int64_t>(2);
    return room::launch(aware, workspace, stream);
  }
};

}  // namespace

nvinfer1::IPluginCreatorInterface* padded_nms_creator() { return creator<PaddedNms>(); }
nvinfer1::IPluginCreatorInterface* padded_batched_nms_creator() { return creator<PaddedBatchedNms>(); }

}  // namespace upsnet::tensorrt
