// The TensorRTs that are in this process. There may be several: the full one, the lean runtime, TensorRT-RTX.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tensorrt/abi/plugin.h"

namespace upsnet::tensorrt {

class Host {
 public:
  // Nothing is loaded: a TensorRT that nobody asked for would be one too many.
  static std::vector<Host> all();
  // The one that made this object, a logger finder.
  static std::optional<Host> of(const void* object);

  // False for one whose layout nobody knows: its registry seems empty and takes nothing, it has no logger.
  bool is_known() const { return layout_ != Layout::kUnknown; }
  std::string to_string() const;  // "TensorRT 11.4 (file)"

  // Of its registry of plugins.
  std::vector<nvinfer1::IPluginCreatorInterface*> creators() const;
  void add(nvinfer1::IPluginCreatorInterface& creator) const;
  void remove(const nvinfer1::IPluginCreatorInterface& creator) const;

  // An error, by the logger that `finder` has for this thread (null: by the process's); false where there is none.
  bool log(void* finder, const char* line) const;

 private:
  enum class Layout { kUnknown, k10, k11 };  // v10, v11 in abi/process.h

  Host(void* library, void* registry, int32_t version);
  static std::optional<Host> in(void* library);
  void* logger(void* finder) const;
  // visit(object), `object` as the layout has it.
  template <typename V10, typename V11, typename Visit>
  auto as(void* object, Visit visit) const;

  void* library_;
  void* registry_;
  int32_t major_, minor_;
  Layout layout_ = Layout::kUnknown;
};

}  // namespace upsnet::tensorrt
