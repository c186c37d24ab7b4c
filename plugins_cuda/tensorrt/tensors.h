// What a plugin's inputs and outputs are, and what follows from it: types, formats, shapes.
#pragma once

#include "tensorrt/abi/plugin.h"

#include <cstdint>
#include <string>

#include "common/types.h"

namespace upsnet::tensorrt {

enum class Type { kFeatures, kLikeFirstInput, kFloat32, kFloat16, kInt32, kInt64 };  // kFeatures: fp32, fp16 or bf16

// One input or output. `shape` is a pattern such as "B C H W": equal letters are equal sizes in all inputs, numbers are
// themselves. Channels-last: kHWC for fp32, kHWC8 for fp16 and bf16, which is plain NHWC when the channels are a
// multiple of 8 (and only then: otherwise each pixel's channels are padded); all tensors with the flag have one layout.
struct Tensor {
  const char* name;
  const char* shape;
  Type type;
  bool may_be_channels_last = false;
};

bool supports(const Tensor& tensor, const nvinfer1::PluginTensorDesc& desc, const nvinfer1::PluginTensorDesc& first);
nvinfer1::DataType output_type(const Tensor& tensor, nvinfer1::DataType first_input);

// Holds the inputs' dimensions against their patterns; -1 (not known yet) fits everything. std::invalid_argument with
// the tensor's name and both shapes.
void check_shapes(const Tensor* tensors, const nvinfer1::Dims* dims, int32_t count);

std::string to_string(const nvinfer1::Dims& dims);

// The tensors of one enqueue; without data when only sizes are asked for.
struct Call {
  int32_t num_inputs;
  const nvinfer1::PluginTensorDesc* inputs;
  const void* const* input_data = nullptr;
  void* const* output_data = nullptr;

  int32_t size(int32_t input, int32_t axis) const { return static_cast<int32_t>(inputs[input].dims.d[axis]); }
  DType type(int32_t input) const;
  Layout layout(int32_t input) const;
  // Null is an optional input that the node does not have; never one whose data is not there yet.
  template <typename T = void>
  const T* input(int32_t index) const {
    static constexpr int64_t kNoData = 0;
    const void* const data = input_data == nullptr ? &kNoData : input_data[index < num_inputs ? index : 0];
    return index < num_inputs ? static_cast<const T*>(data) : nullptr;
  }
  template <typename T = void>
  T* output(int32_t index) const {
    return output_data == nullptr ? nullptr : static_cast<T*>(output_data[index]);
  }
};

// Output dimensions as expressions of input dimensions.
class Expressions {
 public:
  explicit Expressions(nvinfer1::IExprBuilder& builder) : builder_(builder) {}

  const nvinfer1::IDimensionExpr* constant(int64_t value) { return builder_.constant(value); }
  const nvinfer1::IDimensionExpr* sum(const nvinfer1::IDimensionExpr* dim, int64_t more) {
    return builder_.operation(nvinfer1::DimensionOperation::kSUM, *dim, *constant(more));
  }
  const nvinfer1::IDimensionExpr* product(const nvinfer1::IDimensionExpr* dim, int64_t factor) {
    return builder_.operation(nvinfer1::DimensionOperation::kPROD, *dim, *constant(factor));
  }
  template <typename... Dimensions>
  static nvinfer1::DimsExprs shape(Dimensions... dimensions) {
    return {static_cast<int32_t>(sizeof...(dimensions)), {dimensions...}};
  }

 private:
  nvinfer1::IExprBuilder& builder_;
};

}  // namespace upsnet::tensorrt
