// A plugin's attributes, from and to TensorRT's fields.
//
// Every operator has one function `attributes(self, visitor)` that names its attributes; the visitors here do the rest:
// FieldReader reads them (from the ONNX node, from a caller, from a serialised engine), FieldWriter lists them as
// fields (for the creator and for the engine), Description prints them.
#pragma once

#include "tensorrt/abi/plugin.h"

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace upsnet::tensorrt {

class FieldReader {
 public:
  explicit FieldReader(const nvinfer1::PluginFieldCollection& fields) : fields_(fields) {}

  // std::invalid_argument when the field is missing or is not what `value` is.
  template <typename T>
  void required(const char* name, T& value) const {
    read(find(name, true), value);
  }
  // The same, but a missing field leaves `value` as it is.
  template <typename T>
  void optional(const char* name, T& value) const {
    if (const nvinfer1::PluginField* field = find(name, false)) read(field, value);
  }

 private:
  const nvinfer1::PluginField* find(const char* name, bool required) const;
  static void read(const nvinfer1::PluginField* field, std::string& value);
  static void read(const nvinfer1::PluginField* field, int32_t& value) { numbers(*field, &value, 1); }
  static void read(const nvinfer1::PluginField* field, float& value) { numbers(*field, &value, 1); }
  template <size_t N>
  static void read(const nvinfer1::PluginField* field, std::array<int32_t, N>& values) {
    numbers(*field, values.data(), N);
  }
  static void numbers(const nvinfer1::PluginField& field, int32_t* values, int32_t count);
  static void numbers(const nvinfer1::PluginField& field, float* values, int32_t count);

  const nvinfer1::PluginFieldCollection& fields_;
};

// The fields point into the operator whose attributes were visited.
class FieldWriter {
 public:
  template <typename T>
  void required(const char* name, const T& value) {
    add(name, value);
  }
  template <typename T>
  void optional(const char* name, const T& value) {
    add(name, value);
  }

  std::vector<nvinfer1::PluginField> fields;

 private:
  void add(const char* name, const int32_t& value) { add(name, &value, nvinfer1::PluginFieldType::kINT32, 1); }
  void add(const char* name, const float& value) { add(name, &value, nvinfer1::PluginFieldType::kFLOAT32, 1); }
  void add(const char* name, const std::string& value) {
    add(name, value.data(), nvinfer1::PluginFieldType::kCHAR, static_cast<int32_t>(value.size()));
  }
  template <size_t N>
  void add(const char* name, const std::array<int32_t, N>& values) {
    add(name, values.data(), nvinfer1::PluginFieldType::kINT32, static_cast<int32_t>(N));
  }
  void add(const char* name, const void* data, nvinfer1::PluginFieldType type, int32_t length) {
    fields.emplace_back(name, data, type, length);
  }
};

// "output_size=7 sampling_ratio=2 ..."
class Description {
 public:
  template <typename T>
  void required(const char* name, const T& value) {
    add(name, value);
  }
  template <typename T>
  void optional(const char* name, const T& value) {
    add(name, value);
  }

  std::string text;

 private:
  void add(const char* name, const std::string& value) {
    text.append(text.empty() ? "" : " ").append(name).append("=").append(value);
  }
  void add(const char* name, int32_t value) { add(name, std::to_string(value)); }
  void add(const char* name, float value);
  template <size_t N>
  void add(const char* name, const std::array<int32_t, N>& values) {
    std::string all;
    for (const int32_t value : values) all.append(all.empty() ? "" : ",").append(std::to_string(value));
    add(name, all);
  }
};

}  // namespace upsnet::tensorrt
