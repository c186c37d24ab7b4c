// TensorRT's IPluginV3 around an operator: everything that does not depend on which operator it is.
//
// The operator's table is an Operator of common/node.h; kNode is one of its nodes. <room>/plugin.cpp derives from it
// where TensorRT needs more. A plugin keeps its attributes and nothing else, so that one object may be timed, cloned
// and run anywhere.
#pragma once

#include "tensorrt/abi/plugin.h"
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "tensorrt/attributes.h"
#include "tensorrt/kernel_abi.h"
#include "tensorrt/log.h"
#include "tensorrt/tensors.h"

namespace upsnet::tensorrt {

template <typename Operator, int32_t kNode>
class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
  using DimsExprs = nvinfer1::DimsExprs;
  using DataType = nvinfer1::DataType;
  using Desc = nvinfer1::PluginTensorDesc;
  using DynamicDesc = nvinfer1::DynamicPluginTensorDesc;
  static constexpr const char* kName = Operator::kNodes[kNode].name;
  static constexpr int32_t kNumInputs = Operator::kNodes[kNode].num_inputs;
  static constexpr int32_t kNumOutputs = std::size(Operator::kOutputs);

 public:
  explicit Plugin(const Operator& op) : op_(op) {
    FieldWriter writer;
    visit(writer);
    fields_ = std::move(writer.fields);
    collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
    Description description;
    visit(description);
    description_ = std::move(description.text);
  }
  Plugin(const Plugin&) = delete;  // the fields point into op_
  Plugin& operator=(const Plugin&) = delete;

  // IPluginV3
  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override {
    switch (type) {
      case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
      case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
      case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
  }
  nvinfer1::IPluginV3* clone() noexcept override {
    return guarded("clone", static_cast<nvinfer1::IPluginV3*>(nullptr), [&] { return new Plugin(op_); });
  }

  // Core
  const char* getPluginName() const noexcept override { return kName; }
  const char* getPluginVersion() const noexcept override { return "1"; }
  const char* getPluginNamespace() const noexcept override { return ""; }

  // Build
  int32_t getNbOutputs() const noexcept override { return kNumOutputs; }
  int32_t getOutputDataTypes(DataType* outputs, int32_t num_outputs, const DataType* inputs,
                             int32_t num_inputs) const noexcept override {
    return guarded("getOutputDataTypes", -1, [&] {
      expect_counts(num_inputs, num_outputs);
      for (int32_t i = 0; i < kNumOutputs; ++i) outputs[i] = output_type(Operator::kOutputs[i], inputs[0]);
      return 0;
    });
  }
  int32_t getOutputShapes(const DimsExprs* inputs, int32_t num_inputs, const DimsExprs*, int32_t, DimsExprs* outputs,
                          int32_t num_outputs, nvinfer1::IExprBuilder& builder) noexcept override {
    return guarded("getOutputShapes", -1, [&] {
      expect_counts(num_inputs, num_outputs);
      Shape shapes[kNumInputs];
      for (int32_t i = 0; i < kNumInputs; ++i) {
        shapes[i].rank = inputs[i].nbDims;
        for (int32_t axis = 0; axis < inputs[i].nbDims; ++axis) {
          const nvinfer1::IDimensionExpr& size = *inputs[i].d[axis];
          shapes[i].d[axis] = size.isConstant() ? size.getConstantValue() : -1;
        }
      }
      check_sizes(shapes);
      Expressions expressions(builder);
      op_.output_shapes(inputs, outputs, expressions);
      return 0;
    });
  }
  bool supportsFormatCombination(int32_t pos, const DynamicDesc* tensors, int32_t num_inputs,
                                 int32_t num_outputs) noexcept override {
    return guarded("supportsFormatCombination", false, [&] {
      expect_counts(num_inputs, num_outputs);
      const Tensor& tensor = pos < kNumInputs ? Operator::kInputs[pos] : Operator::kOutputs[pos - kNumInputs];
      return supports(tensor, tensors[pos].desc, tensors[0].desc);
    });
  }
  int32_t configurePlugin(const DynamicDesc* inputs, int32_t num_inputs, const DynamicDesc*,
                          int32_t num_outputs) noexcept override {
    return guarded("configurePlugin", -1, [&] {
      expect_counts(num_inputs, num_outputs);
      for (const auto which : {&DynamicDesc::min, &DynamicDesc::opt, &DynamicDesc::max}) {
        Shape shapes[kNumInputs];
        for (int32_t i = 0; i < kNumInputs; ++i) shapes[i] = shape_of(inputs[i].*which);
        check_sizes(shapes);
      }
      // A profile may end beyond what runs, but is made for what it names as usual.
      check_runs({kNumInputs, at(inputs, &DynamicDesc::opt).data()});
      return 0;
    });
  }
  size_t getWorkspaceSize(const DynamicDesc* inputs, int32_t num_inputs, const DynamicDesc*,
                          int32_t num_outputs) const noexcept override {
    // A failure asks for more than there is: TensorRT stops instead of running a kernel without its workspace.
    return guarded("getWorkspaceSize", SIZE_MAX, [&] {
      expect_counts(num_inputs, num_outputs);
      return op_.workspace_size({kNumInputs, at(inputs, &DynamicDesc::max).data()});
    });
  }
  // The kernels and the attributes: they and the shapes decide how fast a format is.
  const char* getTimingCacheID() noexcept override { return description_.c_str(); }
  const char* getMetadataString() noexcept override { return description_.c_str(); }

  // Runtime
  int32_t onShapeChange(const Desc* inputs, int32_t num_inputs, const Desc*, int32_t num_outputs) noexcept override {
    return guarded("onShapeChange", -1, [&] {
      expect_counts(num_inputs, num_outputs);
      Shape shapes[kNumInputs];
      for (int32_t i = 0; i < kNumInputs; ++i) shapes[i] = shape_of(inputs[i].dims);
      check_sizes(shapes);
      check_runs({kNumInputs, arguments_of(inputs).data()});
      return 0;
    });
  }
  int32_t enqueue(const Desc* input_descs, const Desc*, const void* const* inputs, void* const* outputs,
                  void* workspace, cudaStream_t stream) noexcept override {
    return guarded("enqueue", -1, [&] {
      // TensorRT does not say how large the workspace is. It is what getWorkspaceSize answered for the largest shapes,
      // which is enough for these: workspace_size grows with every size of the inputs. So launch refuses no short one
      // here; a number kept from getWorkspaceSize might be that of another profile, format or clone.
      const auto arguments = arguments_of(input_descs);
      const Call call{kNumInputs, arguments.data(), inputs, outputs};
      const int status = op_.launch(call, workspace, op_.workspace_size(call), stream);
      if (status == cudaSuccess) return 0;
      check_runs(call);
      throw std::runtime_error(cudaGetErrorString(static_cast<cudaError_t>(status)) +
                               (" with " + sizes_of(Operator::kInputs, arguments.data(), kNumInputs)));
    });
  }
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override { return clone(); }
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override { return &collection_; }

 private:
  template <typename Result, typename Body>
  static Result guarded(const char* method, Result failure, Body body) noexcept {
    return tensorrt::guarded(kName, method, failure, body);
  }

  // What makes the plugin, in an engine: an ONNX node has no kernel_abi, so the creator's list of fields has none
  // either.
  template <typename Visitor>
  void visit(Visitor& visitor) const {
    visitor.required(kKernelAbiField, kKernelAbi);
    Operator::attributes(op_, visitor);
  }

  // The inputs as they are at one end of a profile, or in its middle.
  static std::array<Argument, kNumInputs> at(const DynamicDesc* inputs, nvinfer1::Dims DynamicDesc::* which) {
    std::array<Argument, kNumInputs> arguments;
    for (int32_t i = 0; i < kNumInputs; ++i) {
      Desc desc = inputs[i].desc;
      desc.dims = inputs[i].*which;
      arguments[i] = argument_of(desc);
    }
    return arguments;
  }
  static std::array<Argument, kNumInputs> arguments_of(const Desc* inputs) {
    std::array<Argument, kNumInputs> arguments;
    std::transform(inputs, inputs + kNumInputs, arguments.begin(), argument_of);
    return arguments;
  }

  // Sizes that are not known yet are held against nothing.
  void check_runs(const Call& call) const {
    const auto known = [](const Argument& input) { return is_known(input.shape); };
    if (!std::all_of(call.inputs, call.inputs + kNumInputs, known)) return;
    if (const char* why = op_.unsupported(call)) {
      throw std::invalid_argument("no kernel runs " + std::string(why) + ": " +
                                  sizes_of(Operator::kInputs, call.inputs, kNumInputs));
    }
  }

  static void expect_counts(int32_t inputs, int32_t outputs) {
    if (inputs == kNumInputs && outputs == kNumOutputs) return;
    throw std::invalid_argument(std::to_string(inputs) + " inputs and " + std::to_string(outputs) + " outputs, not " +
                                std::to_string(kNumInputs) + " and " + std::to_string(kNumOutputs));
  }

  void check_sizes(const Shape* inputs) const {
    check_shapes(Operator::kInputs, inputs, kNumInputs);
    if (std::all_of(inputs, inputs + kNumInputs, is_known)) op_.check_sizes(inputs, kNumInputs);
  }

  const Operator op_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_;
  std::string description_;
};

template <typename Operator, int32_t kNode>
class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  Creator() {
    FieldWriter writer;
    Operator::attributes(defaults_, writer);
    fields_ = std::move(writer.fields);
    for (nvinfer1::PluginField& field : fields_) field.data = nullptr;  // names and types
    collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
  }

  nvinfer1::IPluginV3* createPlugin(const char*, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override {
    return guarded(kName, "createPlugin", static_cast<nvinfer1::IPluginV3*>(nullptr), [&] {
      if (fields == nullptr) throw std::invalid_argument("no attributes");
      Operator op;
      const FieldReader reader(*fields);
      check_kernel_abi(reader, phase);
      Operator::attributes(op, reader);
      op.check();
      return new Plugin<Operator, kNode>(op);
    });
  }
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
  const char* getPluginName() const noexcept override { return kName; }
  const char* getPluginVersion() const noexcept override { return "1"; }
  const char* getPluginNamespace() const noexcept override { return ""; }

 private:
  static constexpr const char* kName = Operator::kNodes[kNode].name;
  const Operator defaults_{};
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_;
};

// TensorRT keeps pointers to creators until the process ends, in an order that nobody knows: they are never destroyed.
template <typename Operator, int32_t kNode = 0>
nvinfer1::IPluginCreatorInterface* creator() {
  static auto* const instance = new Creator<Operator, kNode>;
  return instance;
}

}  // namespace upsnet::tensorrt
