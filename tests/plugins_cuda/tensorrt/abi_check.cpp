// Holds plugins_cuda/tensorrt/abi/ against TensorRT's own headers, side by side in one program. Prints a line for every
// difference and how much was compared; exit status 1 where something differs. test_abi.py compiles and runs it.
#include <NvInferRuntime.h>

#define nvinfer1 declared
#include "tensorrt/abi/process.h"
#undef nvinfer1

#include <cstring>
#include <iostream>
#include <string>
#include <type_traits>
#include <typeinfo>

namespace real = nvinfer1;
#if NV_TENSORRT_MAJOR < 11
namespace process = upsnet::tensorrt::v10;
#else
namespace process = upsnet::tensorrt::v11;
#endif

namespace {

int compared = 0, different = 0;

template <typename T>
void expect(const std::string& what, const T& ours, const T& theirs) {
  ++compared;
  if (ours == theirs) return;
  ++different;
  std::cout << what << ": declared " << ours << ", TensorRT " << theirs << '\n';
}

template <typename Ours, typename Theirs>
void compare_sizes(const std::string& name) {
  expect("size of " + name, sizeof(Ours), sizeof(Theirs));
  expect("alignment of " + name, alignof(Ours), alignof(Theirs));
}

template <typename Ours, typename Theirs>
void compare_values(const std::string& name, Ours ours, Theirs theirs) {
  using Type = std::underlying_type_t<Theirs>;
  expect("type of " + name, std::is_same_v<std::underlying_type_t<Ours>, Type>, true);
  expect(name, static_cast<Type>(ours), static_cast<Type>(theirs));
}

// A virtual function's entry, as the Itanium C++ ABI has it in a pointer to member: 1 + its offset in the table.
template <typename Member>
std::ptrdiff_t entry(Member member) {
  std::ptrdiff_t parts[2];
  static_assert(sizeof parts == sizeof member);
  std::memcpy(parts, &member, sizeof parts);
  return (parts[0] - 1) / static_cast<std::ptrdiff_t>(sizeof(void*));
}

// How the result and each argument travel: their sizes; a reference is a pointer.
template <typename T>
std::string size() {
  if constexpr (std::is_void_v<T>) {
    return "-";
  } else if constexpr (std::is_reference_v<T>) {
    return std::to_string(sizeof(void*));
  } else {
    return std::to_string(sizeof(T)) + (std::is_floating_point_v<T> ? "f" : "");
  }
}
template <typename Class, typename Result, typename... Arguments>
std::string signature(Result (Class::*)(Arguments...)) {
  return size<Result>() + "(" + ((size<Arguments>() + " ") + ... + std::string()) + ")";
}
template <typename Class, typename Result, typename... Arguments>
std::string signature(Result (Class::*)(Arguments...) const) {
  return size<Result>() + "(" + ((size<Arguments>() + " ") + ... + std::string()) + ") const";
}

template <typename Ours, typename Theirs>
void compare_functions(const std::string& name, Ours ours, Theirs theirs) {
  expect("entry of " + name, entry(ours), entry(theirs));
  expect("signature of " + name, signature(ours), signature(theirs));
}

// One more function stands behind all others: its entry is the table's length.
template <typename Class>
struct Longer : Class {
  virtual void last() {}
};

template <typename Ours, typename Theirs>
void compare_lengths(const std::string& name) {
  expect("length of " + name + "'s table", entry(&Longer<Ours>::last), entry(&Longer<Theirs>::last));
}

// The name that dynamic_cast goes by; both namespaces' names have eight letters.
template <typename Ours, typename Theirs>
void compare_names(const std::string& name) {
  std::string ours = typeid(Ours).name();
  ours.replace(ours.find("declared"), 8, "nvinfer1");
  expect("type name of " + name, ours, std::string(typeid(Theirs).name()));
}

// What an object says that it is. The function uses nothing of its object, and abstract classes have none.
template <typename Class>
std::string kind() {
  alignas(Class) unsigned char storage[sizeof(Class)] = {};
  const auto info = reinterpret_cast<const Class*>(storage)->Class::getInterfaceInfo();
  return std::string(info.kind) + " " + std::to_string(info.major) + "." + std::to_string(info.minor);
}

#pragma GCC diagnostic ignored "-Winvalid-offsetof"
template <typename Class>
struct Implementation : Class {
  static size_t offset() { return offsetof(Implementation, mImpl); }
};

}  // namespace

#define SIZES(Class) compare_sizes<declared::Class, real::Class>(#Class)
#define VALUE(Enum, value) compare_values(#Enum "::" #value, declared::Enum::value, real::Enum::value)
#define MEMBER(Class, member)                                                                                 \
  expect("offset of " #Class "::" #member, offsetof(declared::Class, member), offsetof(real::Class, member)); \
  expect("size of " #Class "::" #member, sizeof(declared::Class::member), sizeof(real::Class::member))
#define FUNCTION(Class, name) compare_functions(#Class "::" #name, &declared::Class::name, &real::Class::name)
#define TABLE(Class) \
  SIZES(Class);      \
  compare_lengths<declared::Class, real::Class>(#Class)
#define INTERFACE(Class) \
  TABLE(Class);          \
  compare_names<declared::Class, real::Class>(#Class)
#define KIND(Class) \
  INTERFACE(Class); \
  expect("kind of " #Class, kind<declared::Class>(), kind<real::Class>())

namespace {

void compare_data() {
  VALUE(DataType, kFLOAT), VALUE(DataType, kHALF), VALUE(DataType, kINT32), VALUE(DataType, kBF16);
  VALUE(DataType, kINT64);
  VALUE(TensorFormat, kLINEAR), VALUE(TensorFormat, kHWC8), VALUE(TensorFormat, kHWC);
  VALUE(PluginFieldType, kFLOAT32), VALUE(PluginFieldType, kFLOAT64), VALUE(PluginFieldType, kINT32);
  VALUE(PluginFieldType, kCHAR), VALUE(PluginFieldType, kUNKNOWN), VALUE(PluginFieldType, kINT64);
  VALUE(PluginCapabilityType, kCORE), VALUE(PluginCapabilityType, kBUILD), VALUE(PluginCapabilityType, kRUNTIME);
  VALUE(TensorRTPhase, kBUILD), VALUE(TensorRTPhase, kRUNTIME);
  VALUE(DimensionOperation, kSUM), VALUE(DimensionOperation, kPROD), VALUE(DimensionOperation, kSUB);
  VALUE(DimensionOperation, kFLOOR_DIV);
  VALUE(APILanguage, kCPP);
  using Severity = upsnet::tensorrt::Severity;
  compare_values("Severity::kINTERNAL_ERROR", Severity::kINTERNAL_ERROR, real::ILogger::Severity::kINTERNAL_ERROR);
  compare_values("Severity::kERROR", Severity::kERROR, real::ILogger::Severity::kERROR);
  compare_values("Severity::kWARNING", Severity::kWARNING, real::ILogger::Severity::kWARNING);
  compare_values("Severity::kINFO", Severity::kINFO, real::ILogger::Severity::kINFO);
  compare_values("Severity::kVERBOSE", Severity::kVERBOSE, real::ILogger::Severity::kVERBOSE);

  expect("Dims::MAX_DIMS", declared::Dims::MAX_DIMS + 0, real::Dims::MAX_DIMS + 0);
  SIZES(Dims), MEMBER(Dims, nbDims), MEMBER(Dims, d);
  SIZES(DimsExprs), MEMBER(DimsExprs, nbDims), MEMBER(DimsExprs, d);
  SIZES(PluginTensorDesc), MEMBER(PluginTensorDesc, dims), MEMBER(PluginTensorDesc, type);
  MEMBER(PluginTensorDesc, format), MEMBER(PluginTensorDesc, scale);
  SIZES(DynamicPluginTensorDesc), MEMBER(DynamicPluginTensorDesc, desc), MEMBER(DynamicPluginTensorDesc, min);
  MEMBER(DynamicPluginTensorDesc, max), MEMBER(DynamicPluginTensorDesc, opt);
  SIZES(PluginField), MEMBER(PluginField, name), MEMBER(PluginField, data), MEMBER(PluginField, type);
  MEMBER(PluginField, length);
  SIZES(PluginFieldCollection), MEMBER(PluginFieldCollection, nbFields), MEMBER(PluginFieldCollection, fields);
  SIZES(InterfaceInfo), MEMBER(InterfaceInfo, kind), MEMBER(InterfaceInfo, major), MEMBER(InterfaceInfo, minor);
}

void compare_plugins() {
  INTERFACE(IVersionedInterface), INTERFACE(IPluginCapability), INTERFACE(IPluginCreatorInterface);
  FUNCTION(IVersionedInterface, getAPILanguage), FUNCTION(IVersionedInterface, getInterfaceInfo);

  KIND(IPluginV3);
  FUNCTION(IPluginV3, getCapabilityInterface), FUNCTION(IPluginV3, clone);

  KIND(IPluginV3OneCore);
  FUNCTION(IPluginV3OneCore, getPluginName), FUNCTION(IPluginV3OneCore, getPluginVersion);
  FUNCTION(IPluginV3OneCore, getPluginNamespace);

  KIND(IPluginV3OneBuild);
  FUNCTION(IPluginV3OneBuild, configurePlugin), FUNCTION(IPluginV3OneBuild, getOutputDataTypes);
  FUNCTION(IPluginV3OneBuild, getOutputShapes), FUNCTION(IPluginV3OneBuild, supportsFormatCombination);
  FUNCTION(IPluginV3OneBuild, getNbOutputs), FUNCTION(IPluginV3OneBuild, getWorkspaceSize);
  FUNCTION(IPluginV3OneBuild, getValidTactics), FUNCTION(IPluginV3OneBuild, getNbTactics);
  FUNCTION(IPluginV3OneBuild, getTimingCacheID), FUNCTION(IPluginV3OneBuild, getFormatCombinationLimit);
  FUNCTION(IPluginV3OneBuild, getMetadataString);

  KIND(IPluginV3OneRuntime);
  FUNCTION(IPluginV3OneRuntime, setTactic), FUNCTION(IPluginV3OneRuntime, onShapeChange);
  FUNCTION(IPluginV3OneRuntime, enqueue), FUNCTION(IPluginV3OneRuntime, attachToContext);
  FUNCTION(IPluginV3OneRuntime, getFieldsToSerialize);

  KIND(IPluginCreatorV3One);
  FUNCTION(IPluginCreatorV3One, createPlugin), FUNCTION(IPluginCreatorV3One, getFieldNames);
  FUNCTION(IPluginCreatorV3One, getPluginName), FUNCTION(IPluginCreatorV3One, getPluginVersion);
  FUNCTION(IPluginCreatorV3One, getPluginNamespace);
}

void compare_expressions() {
  TABLE(IDimensionExpr), TABLE(IExprBuilder), TABLE(apiv::VDimensionExpr), TABLE(apiv::VExprBuilder);
  expect("offset of IDimensionExpr::mImpl", Implementation<declared::IDimensionExpr>::offset(),
         Implementation<real::IDimensionExpr>::offset());
  expect("offset of IExprBuilder::mImpl", Implementation<declared::IExprBuilder>::offset(),
         Implementation<real::IExprBuilder>::offset());
  FUNCTION(apiv::VDimensionExpr, isConstant), FUNCTION(apiv::VDimensionExpr, getConstantValue);
  FUNCTION(apiv::VDimensionExpr, isSizeTensor);
  FUNCTION(apiv::VExprBuilder, constant), FUNCTION(apiv::VExprBuilder, operation);
  FUNCTION(apiv::VExprBuilder, declareSizeTensor);
}

// A registry may have more functions than ours: nobody but TensorRT makes one.
void compare_process() {
  using Ours = process::IPluginRegistry;
  using Theirs = real::IPluginRegistry;
  compare_sizes<Ours, Theirs>("IPluginRegistry");
#define REGISTRY(name) compare_functions("IPluginRegistry::" #name, &Ours::name, &Theirs::name)
  REGISTRY(setErrorRecorder), REGISTRY(getErrorRecorder), REGISTRY(isParentSearchEnabled);
  REGISTRY(setParentSearchEnabled), REGISTRY(loadLibrary), REGISTRY(deregisterLibrary), REGISTRY(getAllCreators);
  REGISTRY(getCreator), REGISTRY(acquirePluginResource), REGISTRY(releasePluginResource);
  // TensorRT 10 has two of either name.
  bool (Theirs::*add)(real::IPluginCreatorInterface&, const char*) noexcept = &Theirs::registerCreator;
  bool (Theirs::*remove)(const real::IPluginCreatorInterface&) noexcept = &Theirs::deregisterCreator;
  compare_functions("IPluginRegistry::registerCreator", &Ours::registerCreator, add);
  compare_functions("IPluginRegistry::deregisterCreator", &Ours::deregisterCreator, remove);
#if NV_TENSORRT_MAJOR < 11
  REGISTRY(getPluginCreatorList), REGISTRY(getPluginCreator);
  bool (Theirs::*add_v2)(real::IPluginCreator&, const char*) noexcept = &Theirs::registerCreator;
  bool (Theirs::*remove_v2)(const real::IPluginCreator&) noexcept = &Theirs::deregisterCreator;
  compare_functions("IPluginRegistry::registerCreator (V2)", &Ours::registerCreatorV2, add_v2);
  compare_functions("IPluginRegistry::deregisterCreator (V2)", &Ours::deregisterCreatorV2, remove_v2);
#else
  REGISTRY(getAllCreatorsRecursive);
  expect("kind of ILogger", kind<process::ILogger>(), kind<real::ILogger>());
  expect("kind of ILoggerFinder", kind<process::ILoggerFinder>(), kind<real::ILoggerFinder>());
#endif
  compare_sizes<process::ILogger, real::ILogger>("ILogger");
  compare_lengths<process::ILogger, real::ILogger>("ILogger");
  compare_functions("ILogger::log", &process::ILogger::log, &real::ILogger::log);
  compare_sizes<process::ILoggerFinder, real::ILoggerFinder>("ILoggerFinder");
  compare_lengths<process::ILoggerFinder, real::ILoggerFinder>("ILoggerFinder");
  compare_functions("ILoggerFinder::findLogger", &process::ILoggerFinder::findLogger, &real::ILoggerFinder::findLogger);
}

}  // namespace

int main() {
  compare_data();
  compare_plugins();
  compare_expressions();
  compare_process();
  std::cout << "TensorRT " << NV_TENSORRT_MAJOR << '.' << NV_TENSORRT_MINOR << ": " << compared << " compared, "
            << different << " different\n";
  return different != 0;
}
