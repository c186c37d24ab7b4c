// The nodes that enqueue_check.cpp runs: attributes, inputs, and the same operator called without a plugin.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <string>
#include <vector>

#include "common/types.h"
#include "tensorrt/abi/plugin.h"

namespace upsnet::tensorrt {

// What differs from one photo to the next: images, the finest map (P2), boxes.
struct Size {
  int64_t batch, height, width, boxes;
};

// Of the network, and of its profile.
struct Setting {
  int64_t channels, stuff, things, detections;
  Size smallest, largest;
  std::vector<Size> runs;
};

// One attribute, with the memory that its field points to.
struct Attribute {
  Attribute(std::string name, int32_t number) : name(std::move(name)), numbers{number} {}
  Attribute(std::string name, std::vector<int32_t> numbers) : name(std::move(name)), numbers(std::move(numbers)) {}
  Attribute(std::string name, float number) : name(std::move(name)), number(number) {}
  Attribute(std::string name, const char* text) : name(std::move(name)), text(text) {}
  nvinfer1::PluginField field() const;

  std::string name, text;
  std::vector<int32_t> numbers;
  float number = 0;
};

using Values = std::vector<double>;

struct Input {
  nvinfer1::DataType type;  // kHALF: the type of the run's features
  std::vector<int64_t> (*shape)(const Setting&, const Size&);
  Values (*values)(const Setting&, const Size&, int64_t count);
  bool may_be_channels_last = false;
};

// The tensors of one run, where the plugin and the kernels find them.
struct Run {
  std::vector<nvinfer1::Dims> shapes;  // of the inputs
  DType type;
  Layout layout;
  std::vector<const void*> inputs;
  std::vector<void*> outputs;

  template <typename T>
  T* output(size_t index) const {
    return static_cast<T*>(outputs[index]);
  }
  template <typename T>
  const T* input(size_t index) const {
    return index < inputs.size() ? static_cast<const T*>(inputs[index]) : nullptr;
  }
  int32_t size(size_t input, int axis) const { return static_cast<int32_t>(shapes[input].d[axis]); }
};

struct Case {
  const char* node;
  std::list<Attribute> attributes;
  std::vector<Input> inputs;
  bool bytes_first = false;  // the kernels' first output is bytes, the plugin's the same numbers in fp16
  // The operator itself: the library's upsnet_<room>_workspace_size and upsnet_<room>_launch.
  std::function<size_t(const Run&)> workspace_size = nullptr;
  std::function<int(const Run&, void* workspace, size_t bytes)> launch = nullptr;
};

std::vector<Case> all_cases(const Setting& setting);

}  // namespace upsnet::tensorrt
