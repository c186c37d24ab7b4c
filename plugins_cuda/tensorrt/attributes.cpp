#include "tensorrt/attributes.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "tensorrt/kernel_abi.h"

namespace upsnet::tensorrt {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

[[noreturn]] void refuse(const PluginField& field, const std::string& why) {
  throw std::invalid_argument("attribute " + std::string(field.name) + " " + why);
}

void expect_length(const PluginField& field, int32_t count) {
  if (field.data == nullptr || field.length != count) {
    refuse(field, "holds " + std::to_string(field.data == nullptr ? 0 : field.length) + " values, not " +
                      std::to_string(count));
  }
}

// Element `index` of the field's array. Not by a cast and an index: nobody promises that the data are aligned.
template <typename T>
T element(const PluginField& field, int32_t index) {
  T value;
  std::memcpy(&value, static_cast<const char*>(field.data) + size_t(index) * sizeof value, sizeof value);
  return value;
}

}  // namespace

const PluginField* FieldReader::find(const char* name, bool required) const {
  for (int32_t i = 0; i < fields_.nbFields; ++i) {
    const PluginField& field = fields_.fields[i];
    if (field.name != nullptr && std::strcmp(field.name, name) == 0) return &field;
  }
  if (required) throw std::invalid_argument("attribute " + std::string(name) + " is missing");
  return nullptr;
}

void FieldReader::read(const PluginField* field, std::string& value) {
  if (field->type != PluginFieldType::kCHAR || field->data == nullptr) refuse(*field, "is not a string");
  const char* text = static_cast<const char*>(field->data);
  value.assign(text, strnlen(text, size_t(std::max(field->length, 0))));  // with or without a final zero
}

void FieldReader::numbers(const PluginField& field, int32_t* values, int32_t count) {
  if (field.type != PluginFieldType::kINT32 && field.type != PluginFieldType::kINT64) refuse(field, "is no integer");
  expect_length(field, count);
  for (int32_t i = 0; i < count; ++i) {
    const int64_t value =
        field.type == PluginFieldType::kINT64 ? element<int64_t>(field, i) : element<int32_t>(field, i);
    if (value < std::numeric_limits<int32_t>::min() || value > std::numeric_limits<int32_t>::max()) {
      refuse(field, "is out of range: " + std::to_string(value));
    }
    values[i] = static_cast<int32_t>(value);
  }
}

void FieldReader::numbers(const PluginField& field, float* values, int32_t count) {
  if (field.type != PluginFieldType::kFLOAT32 && field.type != PluginFieldType::kFLOAT64) {
    refuse(field, "is no floating-point number");
  }
  expect_length(field, count);
  for (int32_t i = 0; i < count; ++i) {
    values[i] = field.type == PluginFieldType::kFLOAT64 ? static_cast<float>(element<double>(field, i))
                                                        : element<float>(field, i);
  }
}

void check_kernel_abi(const FieldReader& fields, nvinfer1::TensorRTPhase phase) {
  // An ONNX node does not say what its engine is to run with.
  int32_t built_for = phase == nvinfer1::TensorRTPhase::kBUILD ? kKernelAbi : 1;
  fields.optional(kKernelAbiField, built_for);
  if (built_for == kKernelAbi) return;
  throw std::invalid_argument("the engine was built for kernel ABI " + std::to_string(built_for) +
                              ", these plugins have kernel ABI " + std::to_string(kKernelAbi) +
                              ": build the engine anew with `upsnet engine`");
}

void Description::add(const char* name, float value) {
  char digits[32];
  std::snprintf(digits, sizeof digits, "%.9g", double(value));  // enough to tell any two floats apart
  add(name, std::string(digits));
}

}  // namespace upsnet::tensorrt
