#include "tensorrt/tensors.h"

#include <limits>
#include <map>
#include <sstream>
#include <stdexcept>

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

bool fits(const std::string& token, int64_t size, std::map<std::string, int64_t>& known) {
  if (size > std::numeric_limits<int32_t>::max()) return false;  // the kernels' parameters hold 32 bits
  if (size < 0) return true;
  if (token[0] >= '0' && token[0] <= '9') return size == std::stoll(token);
  return known.emplace(token, size).first->second == size;
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
    case Type::kFloat16: return DataType::kHALF;
    case Type::kInt32: return DataType::kINT32;
    case Type::kInt64: return DataType::kINT64;
    case Type::kFeatures:
    case Type::kLikeFirstInput: break;
  }
  return first_input;
}

void check_shapes(const Tensor* tensors, const Dims* dims, int32_t count) {
  std::map<std::string, int64_t> known;
  for (int32_t i = 0; i < count; ++i) {
    std::istringstream pattern(tensors[i].shape);
    std::string token;
    int32_t axis = 0;
    bool all_fit = true;
    for (; pattern >> token; ++axis) {
      if (axis < dims[i].nbDims) all_fit &= fits(token, dims[i].d[axis], known);
    }
    if (all_fit && axis == dims[i].nbDims) continue;
    std::string message = tensors[i].name + (" is " + to_string(dims[i])) + ", not [" + tensors[i].shape + "]";
    for (const auto& [name, size] : known) message += " " + name + "=" + std::to_string(size);
    throw std::invalid_argument(message);
  }
}

std::string to_string(const Dims& dims) {
  std::string text = "[";
  for (int32_t axis = 0; axis < dims.nbDims; ++axis) text += (axis ? " " : "") + std::to_string(dims.d[axis]);
  return text + "]";
}

DType Call::type(int32_t input) const {
  switch (inputs[input].type) {
    case DataType::kHALF: return DType::kFloat16;
    case DataType::kBF16: return DType::kBFloat16;
    default: return DType::kFloat32;  // supports() let nothing else in
  }
}

Layout Call::layout(int32_t input) const {
  return inputs[input].format == TensorFormat::kLINEAR ? Layout::kNCHW : Layout::kNHWC;
}

}  // namespace upsnet::tensorrt
