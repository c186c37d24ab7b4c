// Calls a plugin library the way TensorRT does, without TensorRT: the methods of IPluginV3 as C functions for ctypes.
//
// Pointers given to enqueue go through as they are: host memory for the plugins around emulated kernels, device memory
// for the real ones. Expressions of dimensions are evaluated at once. Structs are TensorRT's own, mirrored in
// harness.py. Loaded with RTLD_GLOBAL, the harness stands for TensorRT itself: it then has the registry and the
// logger that a plugin library looks for, laid out as in the version that harness_set_version was given.
#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "tensorrt/abi/process.h"
#include "tensorrt/constants.h"

#define HARNESS_EXPORT extern "C" __attribute__((visibility("default")))

using namespace nvinfer1;
namespace tensorrt = upsnet::tensorrt;

namespace {

std::string log_lines;

template <typename ILogger>
class Logger final : public ILogger {
 public:
  void log(tensorrt::Severity, const char* message) noexcept override { log_lines.append(message).append("\n"); }
};

template <typename ILogger, typename ILoggerFinder>
class LoggerFinder final : public ILoggerFinder {
 public:
  ILogger* findLogger() override { return &logger; }
  Logger<ILogger> logger;
};
LoggerFinder<tensorrt::v10::ILogger, tensorrt::v10::ILoggerFinder> finder10;
LoggerFinder<tensorrt::v11::ILogger, tensorrt::v11::ILoggerFinder> finder11;

std::vector<IPluginCreatorInterface*> held;

// What both layouts have.
template <typename IPluginRegistry>
class AnyRegistry : public IPluginRegistry {
 public:
  bool registerCreator(IPluginCreatorInterface& creator, const char*) noexcept override {
    held.push_back(&creator);
    return true;
  }
  bool deregisterCreator(const IPluginCreatorInterface& creator) noexcept override {
    const auto found = std::find(held.begin(), held.end(), &creator);
    if (found == held.end()) return false;
    held.erase(found);
    return true;
  }
  IPluginCreatorInterface* const* getAllCreators(int32_t* count) const noexcept override {
    *count = static_cast<int32_t>(held.size());
    return held.data();
  }

  // Nothing below is for a plugin library to call.
  IPluginCreatorInterface* getCreator(const char*, const char*, const char*) noexcept override { return nullptr; }
  void setErrorRecorder(void*) noexcept override {}
  void* getErrorRecorder() const noexcept override { return nullptr; }
  bool isParentSearchEnabled() const override { return false; }
  void setParentSearchEnabled(bool) override {}
  void* loadLibrary(const char*) noexcept override { return nullptr; }
  void deregisterLibrary(void*) noexcept override {}
  void* acquirePluginResource(const char*, void*) noexcept override { return nullptr; }
  int32_t releasePluginResource(const char*) noexcept override { return 0; }
};
class Registry10 final : public AnyRegistry<tensorrt::v10::IPluginRegistry> {
  bool registerCreatorV2(void*, const char*) noexcept override { return false; }
  void* const* getPluginCreatorList(int32_t*) const noexcept override { return nullptr; }
  void* getPluginCreator(const char*, const char*, const char*) noexcept override { return nullptr; }
  bool deregisterCreatorV2(const void*) noexcept override { return false; }
};
class Registry11 final : public AnyRegistry<tensorrt::v11::IPluginRegistry> {
  IPluginCreatorInterface* const* getAllCreatorsRecursive(int32_t*) noexcept override { return nullptr; }
};
Registry10 registry10;
Registry11 registry11;

int32_t version = 110100;
bool is_v10() { return version >= 20000 && version < 110000; }
template <typename T10, typename T11>
void* of_version(T10& v10, T11& v11) {
  return is_v10() ? static_cast<void*>(&v10) : static_cast<void*>(&v11);
}

IPluginCreatorInterface* const* creators;
int32_t num_creators;

template <typename Capability>
Capability* capability(IPluginV3* plugin, PluginCapabilityType type) {
  return static_cast<Capability*>(plugin->getCapabilityInterface(type));
}
IPluginV3OneBuild* build(IPluginV3* plugin) {
  return capability<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
}
IPluginV3OneRuntime* runtime(IPluginV3* plugin) {
  return capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
}

}  // namespace

// TensorRT's own functions: a plugin library asks for the version of whatever library an object is from.
HARNESS_EXPORT int32_t getInferLibVersion() noexcept { return version; }
HARNESS_EXPORT void* getPluginRegistry() noexcept { return of_version(registry10, registry11); }
HARNESS_EXPORT void* getLogger() noexcept { return of_version(finder10.logger, finder11.logger); }

HARNESS_EXPORT void harness_set_version(int32_t number) { version = number; }
HARNESS_EXPORT int32_t harness_num_registered() { return static_cast<int32_t>(held.size()); }

// Null, or why the library cannot be used.
HARNESS_EXPORT const char* harness_load(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return dlerror();
  const auto set_finder = reinterpret_cast<void (*)(void*)>(dlsym(library, "setLoggerFinder"));
  const auto get_creators =
      reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(library, "getCreators"));
  if (set_finder == nullptr || get_creators == nullptr) return "setLoggerFinder or getCreators is missing";
  set_finder(of_version(finder10, finder11));
  creators = get_creators(num_creators);
  return nullptr;
}

// What was logged since the last call.
HARNESS_EXPORT const char* harness_messages() {
  static std::string taken;
  taken = std::move(log_lines);
  log_lines.clear();
  return taken.c_str();
}

HARNESS_EXPORT int32_t harness_num_creators() { return num_creators; }

HARNESS_EXPORT IPluginCreatorV3One* harness_creator(int32_t index) {
  const InterfaceInfo info = creators[index]->getInterfaceInfo();
  const bool is_v3 = std::strcmp(info.kind, "PLUGIN CREATOR_V3ONE") == 0 && info.major == 1;
  return is_v3 ? static_cast<IPluginCreatorV3One*>(creators[index]) : nullptr;
}

// name, version, namespace
HARNESS_EXPORT void harness_identity(const IPluginCreatorV3One* creator, const char** texts) {
  texts[0] = creator->getPluginName();
  texts[1] = creator->getPluginVersion();
  texts[2] = creator->getPluginNamespace();
}

HARNESS_EXPORT const PluginFieldCollection* harness_field_names(IPluginCreatorV3One* creator) {
  return creator->getFieldNames();
}

HARNESS_EXPORT IPluginV3* harness_create(IPluginCreatorV3One* creator, const PluginFieldCollection* fields,
                                         int32_t phase) {
  return creator->createPlugin("node", fields, static_cast<TensorRTPhase>(phase));
}

HARNESS_EXPORT IPluginV3* harness_clone(IPluginV3* plugin) { return plugin->clone(); }
HARNESS_EXPORT IPluginV3* harness_attach(IPluginV3* plugin) { return runtime(plugin)->attachToContext(nullptr); }
HARNESS_EXPORT void harness_destroy(IPluginV3* plugin) { delete plugin; }
HARNESS_EXPORT const PluginFieldCollection* harness_serialize(IPluginV3* plugin) {
  return runtime(plugin)->getFieldsToSerialize();
}
HARNESS_EXPORT const char* harness_metadata(IPluginV3* plugin) { return build(plugin)->getMetadataString(); }
HARNESS_EXPORT const char* harness_timing_id(IPluginV3* plugin) { return build(plugin)->getTimingCacheID(); }
HARNESS_EXPORT int32_t harness_num_outputs(IPluginV3* plugin) { return build(plugin)->getNbOutputs(); }

HARNESS_EXPORT int32_t harness_output_types(IPluginV3* plugin, const DataType* inputs, int32_t num_inputs,
                                            DataType* outputs, int32_t num_outputs) {
  return build(plugin)->getOutputDataTypes(outputs, num_outputs, inputs, num_inputs);
}

HARNESS_EXPORT int32_t harness_output_shapes(IPluginV3* plugin, const Dims* inputs, int32_t num_inputs, Dims* outputs,
                                             int32_t num_outputs) {
  tensorrt::Constants constants;
  std::vector<DimsExprs> in(num_inputs), out(num_outputs);
  for (int32_t i = 0; i < num_inputs; ++i) in[i] = constants.of(inputs[i]);
  const int32_t status =
      build(plugin)->getOutputShapes(in.data(), num_inputs, nullptr, 0, out.data(), num_outputs, constants);
  for (int32_t i = 0; status == 0 && i < num_outputs; ++i) outputs[i] = constants.dims(out[i]);
  return status;
}

HARNESS_EXPORT bool harness_supports(IPluginV3* plugin, int32_t pos, const DynamicPluginTensorDesc* tensors,
                                     int32_t num_inputs, int32_t num_outputs) {
  return build(plugin)->supportsFormatCombination(pos, tensors, num_inputs, num_outputs);
}

HARNESS_EXPORT int32_t harness_configure(IPluginV3* plugin, const DynamicPluginTensorDesc* tensors, int32_t num_inputs,
                                         int32_t num_outputs) {
  return build(plugin)->configurePlugin(tensors, num_inputs, tensors + num_inputs, num_outputs);
}

HARNESS_EXPORT size_t harness_workspace_size(IPluginV3* plugin, const DynamicPluginTensorDesc* tensors,
                                             int32_t num_inputs, int32_t num_outputs) {
  return build(plugin)->getWorkspaceSize(tensors, num_inputs, tensors + num_inputs, num_outputs);
}

HARNESS_EXPORT int32_t harness_shape_change(IPluginV3* plugin, const PluginTensorDesc* tensors, int32_t num_inputs,
                                            int32_t num_outputs) {
  return runtime(plugin)->onShapeChange(tensors, num_inputs, tensors + num_inputs, num_outputs);
}

HARNESS_EXPORT int32_t harness_enqueue(IPluginV3* plugin, const PluginTensorDesc* tensors, int32_t num_inputs,
                                       const void* const* inputs, void* const* outputs, void* workspace,
                                       CUstream_st* stream) {
  return runtime(plugin)->enqueue(tensors, tensors + num_inputs, inputs, outputs, workspace, stream);
}
