// Calls a plugin library the way TensorRT does, without TensorRT: the methods of IPluginV3 as C functions for ctypes.
//
// Pointers given to enqueue go through as they are: host memory for the plugins around emulated kernels, device memory
// for the real ones. Expressions of dimensions are evaluated at once. Structs are TensorRT's own, mirrored in
// conftest.py. Loaded with RTLD_GLOBAL, the harness stands for TensorRT itself: it then has the registry and the
// logger that a plugin library looks for.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

// TensorRT 10 still wants the methods for V2 plugins.
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

#define HARNESS_EXPORT extern "C" __attribute__((visibility("default")))

using namespace nvinfer1;

namespace {

class Expression final : public IDimensionExpr {
 public:
  explicit Expression(int64_t value) : value_(value) { mImpl = &value_; }

 private:
  struct Value final : apiv::VDimensionExpr {
    explicit Value(int64_t value) : value(value) {}
    bool isConstant() const override { return true; }
    int64_t getConstantValue() const override { return value; }
    bool isSizeTensor() const override { return false; }
    const int64_t value;
  };
  Value value_;
};

class Builder final : public IExprBuilder {
 public:
  Builder() { mImpl = &made_; }
  const IDimensionExpr* make(int64_t value) { return made_.constant(value); }

 private:
  struct Made final : apiv::VExprBuilder {
    const IDimensionExpr* constant(int64_t value) override {
      expressions.push_back(std::make_unique<Expression>(value));
      return expressions.back().get();
    }
    const IDimensionExpr* operation(DimensionOperation op, const IDimensionExpr& a, const IDimensionExpr& b) override {
      const int64_t first = a.getConstantValue(), second = b.getConstantValue();
      switch (op) {
        case DimensionOperation::kSUM: return constant(first + second);
        case DimensionOperation::kPROD: return constant(first * second);
        case DimensionOperation::kSUB: return constant(first - second);
        case DimensionOperation::kFLOOR_DIV: return constant(first / second);
        default: return nullptr;
      }
    }
    const IDimensionExpr* declareSizeTensor(int32_t, const IDimensionExpr&, const IDimensionExpr&) override {
      return nullptr;
    }
    std::vector<std::unique_ptr<Expression>> expressions;
  };
  Made made_;
};

class Logger final : public ILogger {
 public:
  void log(Severity, const char* message) noexcept override { lines.append(message).append("\n"); }
  std::string lines;
};
Logger logger;

class LoggerFinder final : public ILoggerFinder {
 public:
  ILogger* findLogger() override { return &logger; }
};
LoggerFinder logger_finder;

class Registry final : public IPluginRegistry {
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
  void setErrorRecorder(IErrorRecorder*) noexcept override {}
  IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
  bool isParentSearchEnabled() const override { return false; }
  void setParentSearchEnabled(bool) override {}
  PluginLibraryHandle loadLibrary(const char*) noexcept override { return nullptr; }
  void deregisterLibrary(PluginLibraryHandle) noexcept override {}
  IPluginResource* acquirePluginResource(const char*, IPluginResource*) noexcept override { return nullptr; }
  int32_t releasePluginResource(const char*) noexcept override { return 0; }
  virtual IPluginCreatorInterface* const* getAllCreatorsRecursive(int32_t*) noexcept { return nullptr; }  // since 10.13
#if NV_TENSORRT_MAJOR < 11
  bool registerCreator(IPluginCreator&, const char*) noexcept override { return false; }
  IPluginCreator* const* getPluginCreatorList(int32_t*) const noexcept override { return nullptr; }
  IPluginCreator* getPluginCreator(const char*, const char*, const char*) noexcept override { return nullptr; }
  bool deregisterCreator(const IPluginCreator&) noexcept override { return false; }
#endif

  std::vector<IPluginCreatorInterface*> held;
};
Registry registry;

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
HARNESS_EXPORT int32_t getInferLibVersion() noexcept { return NV_TENSORRT_VERSION; }
HARNESS_EXPORT IPluginRegistry* getPluginRegistry() noexcept { return &registry; }
HARNESS_EXPORT ILogger* getLogger() noexcept { return &logger; }
HARNESS_EXPORT int32_t harness_num_registered() { return static_cast<int32_t>(registry.held.size()); }

// Null, or why the library cannot be used.
HARNESS_EXPORT const char* harness_load(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return dlerror();
  const auto set_finder = reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"));
  const auto get_creators =
      reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(library, "getCreators"));
  if (set_finder == nullptr || get_creators == nullptr) return "setLoggerFinder or getCreators is missing";
  set_finder(&logger_finder);
  creators = get_creators(num_creators);
  return nullptr;
}

// What was logged since the last call.
HARNESS_EXPORT const char* harness_messages() {
  static std::string taken;
  taken = std::move(logger.lines);
  logger.lines.clear();
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
  Builder builder;
  std::vector<DimsExprs> in(num_inputs), out(num_outputs);
  for (int32_t i = 0; i < num_inputs; ++i) {
    in[i].nbDims = inputs[i].nbDims;
    for (int32_t axis = 0; axis < inputs[i].nbDims; ++axis) in[i].d[axis] = builder.make(inputs[i].d[axis]);
  }
  const int32_t status =
      build(plugin)->getOutputShapes(in.data(), num_inputs, nullptr, 0, out.data(), num_outputs, builder);
  for (int32_t i = 0; status == 0 && i < num_outputs; ++i) {
    outputs[i].nbDims = out[i].nbDims;
    for (int32_t axis = 0; axis < out[i].nbDims; ++axis) outputs[i].d[axis] = out[i].d[axis]->getConstantValue();
  }
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
                                       cudaStream_t stream) {
  return runtime(plugin)->enqueue(tensors, tensors + num_inputs, inputs, outputs, workspace, stream);
}
