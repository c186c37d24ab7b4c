#include "tensorrt/tensors.h"

#include <algorithm>

namespace upsnet::tensorrt {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;

bool is_feature_type(DataType type) {
  return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
}

bool is_channels_last(const PluginTensorDesc& desc) {
  if (desc.dims.nbDims != 4) return false;
  if (desc.type == DataType::kFLOAT) return desc.format == TensorFormat::kHWC;
  const int64_t channels = desc.dims.d[1];  // -1: not known
  return desc.format == TensorFormat::kHWC8 && channels > 0 && channels % 8 == 0;
}

}  // namespace

bool supports(const Tensor& tensor, const PluginTensorDesc& desc, const PluginTensorDesc& first) {
  const bool type_fits =
      tensor.type == Type::kFeatures ? is_feature_type(desc.type) : desc.type == output_type(tensor, first.type);
  if (!type_fits) return false;
  const bool is_first = &desc == &first, is_linear = desc.format == TensorFormat::kLINEAR;
  if (!tensor.may_be_channels_last) return is_linear;
  if (is_first) return is_linear || is_channels_last(desc);
  return first.format == TensorFormat::kLINEAR ? is_linear : is_channels_last(desc);
}

DataType output_type(const Tensor& tensor, DataType first_input) {
  switch (tensor.type) {
    case Type::kFloat32: return DataType::kFLOAT;
    case Type::kUInt8: return DataType::kHALF;
    case Type::kInt32: return DataType::kINT32;
    case Type::kInt64: return DataType::kINT64;
    case Type::kFeatures:
    case Type::kLikeFirstInput: break;
  }
  return first_input;
}

Shape shape_of(const Dims& dims) {
  Shape shape{dims.nbDims, {}};
  std::copy_n(dims.d, dims.nbDims, shape.d);
  return shape;
}

Argument argument_of(const PluginTensorDesc& desc) {
  const auto type = desc.type == DataType::kHALF   ? DType::kFloat16
                    : desc.type == DataType::kBF16 ? DType::kBFloat16
                                                   : DType::kFloat32;  // supports() let nothing else in
  return {shape_of(desc.dims), type, desc.format == TensorFormat::kLINEAR ? Layout::kNCHW : Layout::kNHWC};
}

}  // namespace upsnet::tensorrt
