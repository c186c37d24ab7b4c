// A node's inputs and outputs in TensorRT's words: types, formats, shapes.
#pragma once

#include "tensorrt/abi/plugin.h"

#include <cstdint>

#include "common/node.h"

namespace upsnet::tensorrt {

// Channels-last is kHWC for fp32, and kHWC8 for fp16 and bf16, which is plain NHWC when the channels are a multiple of
// 8 (and only then: otherwise each pixel's channels are padded). No plugin gives out bytes: kUInt8 is fp16 here.
bool supports(const Tensor& tensor, const nvinfer1::PluginTensorDesc& desc, const nvinfer1::PluginTensorDesc& first);
nvinfer1::DataType output_type(const Tensor& tensor, nvinfer1::DataType first_input);

Shape shape_of(const nvinfer1::Dims& dims);
Argument argument_of(const nvinfer1::PluginTensorDesc& desc);

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
