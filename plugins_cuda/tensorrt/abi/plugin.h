// The binary interface between TensorRT and a plugin of the third generation, so that nobody's headers are needed.
//
// Declared from TensorRT's documentation, with what these plugins use and nothing else: an enumeration names the values
// that are used, a class that is only passed on has no body. What counts is binary: the order of virtual functions,
// offsets, sizes, values. Names count, too: TensorRT may ask an object for its type (dynamic_cast), which goes by the
// mangled name of its class. Therefore the namespaces are TensorRT's own; no symbol of them leaves the library.
//
// All of it is the same in TensorRT 10.9 to 11.x and TensorRT-RTX 1.7, unless a comment says "since". What differs
// between them is in tensorrt/abi/process.h. tests/plugins_cuda/tensorrt/test_abi.py holds both against real headers.
// A library built with -DTENSORRT_INCLUDE_DIR takes the real ones instead (tests).
#pragma once

#ifdef UPSNET_TENSORRT_HEADERS
#include <NvInferRuntime.h>
#else

#include <cstddef>
#include <cstdint>

struct CUstream_st;  // cudaStream_t points to it

namespace nvinfer1 {

enum class DataType : int32_t { kFLOAT = 0, kHALF = 1, kINT32 = 3, kBF16 = 7, kINT64 = 8 };
// How a tensor lies in memory: as its dimensions say, or channels last in steps of 8 (16-bit types) or 1 (fp32).
enum class TensorFormat : int32_t { kLINEAR = 0, kHWC8 = 2, kHWC = 8 };
enum class PluginFieldType : int32_t { kFLOAT32 = 1, kFLOAT64 = 2, kINT32 = 5, kCHAR = 6, kUNKNOWN = 8, kINT64 = 10 };
enum class PluginCapabilityType : int32_t { kCORE = 0, kBUILD = 1, kRUNTIME = 2 };
enum class TensorRTPhase : int32_t { kBUILD = 0, kRUNTIME = 1 };
enum class DimensionOperation : int32_t { kSUM = 0, kPROD = 1, kSUB = 4, kFLOOR_DIV = 7 };
enum class APILanguage : int32_t { kCPP = 0 };

// Sizes of a tensor; -1 is one that is not known yet.
struct Dims64 {
  static constexpr int32_t MAX_DIMS = 8;
  int32_t nbDims;
  int64_t d[MAX_DIMS];
};
using Dims = Dims64;

struct PluginTensorDesc {
  Dims dims;
  DataType type;
  TensorFormat format;
  float scale;  // of int8
};

// A tensor while an engine is built, with the bounds of its profile.
struct DynamicPluginTensorDesc {
  PluginTensorDesc desc;
  Dims min, max, opt;
};

// One attribute: `length` elements at `data`, which belong to whoever made the field.
struct PluginField {
  PluginField(const char* name = nullptr, const void* data = nullptr, PluginFieldType type = PluginFieldType::kUNKNOWN,
              int32_t length = 0) noexcept
      : name(name), data(data), type(type), length(length) {}
  const char* name;
  const void* data;
  PluginFieldType type;
  int32_t length;
};

struct PluginFieldCollection {
  int32_t nbFields = 0;
  const PluginField* fields = nullptr;
};

// Which interface an object has, and which version of it. TensorRT compares the kind's text.
struct InterfaceInfo {
  const char* kind;
  int32_t major, minor;
};

// The base of everything that a plugin library implements. Entries 0 and 1, and the destructor's two.
class IVersionedInterface {
 public:
  virtual APILanguage getAPILanguage() const noexcept { return APILanguage::kCPP; }
  virtual InterfaceInfo getInterfaceInfo() const noexcept = 0;
  virtual ~IVersionedInterface() noexcept = default;
};

// Dimensions as expressions. TensorRT makes the objects. Their functions are no virtual ones: each is inline and goes
// through `mImpl` to an object that has them. So the offset of mImpl and the order of the V-class are the interface.
class IDimensionExpr;
namespace apiv {
class VDimensionExpr {
 public:
  virtual ~VDimensionExpr() noexcept = default;
  virtual bool isConstant() const = 0;
  virtual int64_t getConstantValue() const = 0;
  virtual bool isSizeTensor() const = 0;
};
class VExprBuilder {
 public:
  virtual ~VExprBuilder() noexcept = default;
  virtual const IDimensionExpr* constant(int64_t value) = 0;
  virtual const IDimensionExpr* operation(DimensionOperation, const IDimensionExpr&, const IDimensionExpr&) = 0;
  virtual const IDimensionExpr* declareSizeTensor(int32_t output, const IDimensionExpr&, const IDimensionExpr&) = 0;
};
}  // namespace apiv

class IDimensionExpr {
 public:
  bool isConstant() const noexcept { return mImpl->isConstant(); }
  int64_t getConstantValue() const noexcept { return mImpl->getConstantValue(); }

 protected:
  virtual ~IDimensionExpr() noexcept = default;
  apiv::VDimensionExpr* mImpl = nullptr;
};

class IExprBuilder {
 public:
  const IDimensionExpr* constant(int64_t value) noexcept { return mImpl->constant(value); }
  const IDimensionExpr* operation(DimensionOperation op, const IDimensionExpr& a, const IDimensionExpr& b) noexcept {
    return mImpl->operation(op, a, b);
  }

 protected:
  virtual ~IExprBuilder() noexcept = default;
  apiv::VExprBuilder* mImpl = nullptr;
};

struct DimsExprs {
  int32_t nbDims;
  const IDimensionExpr* d[Dims::MAX_DIMS];
};

class IPluginResourceContext;  // allocators and such of an execution context; passed on

namespace v_1_0 {

class IPluginCapability : public IVersionedInterface {};

class IPluginV3 : public IVersionedInterface {
 public:
  InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN", 1, 0}; }
  virtual IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept = 0;
  virtual IPluginV3* clone() noexcept = 0;
};

class IPluginV3OneCore : public IPluginCapability {
 public:
  InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN_V3ONE_CORE", 1, 0}; }
  virtual const char* getPluginName() const noexcept = 0;
  virtual const char* getPluginVersion() const noexcept = 0;
  virtual const char* getPluginNamespace() const noexcept = 0;
};

// A version 2.0 with aliased inputs exists, too: TensorRT asks for it by getInterfaceInfo.
class IPluginV3OneBuild : public IPluginCapability {
 public:
  InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN_V3ONE_BUILD", 1, 0}; }
  virtual int32_t configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t num_inputs,
                                  const DynamicPluginTensorDesc* outputs, int32_t num_outputs) noexcept = 0;
  virtual int32_t getOutputDataTypes(DataType* outputs, int32_t num_outputs, const DataType* inputs,
                                     int32_t num_inputs) const noexcept = 0;
  virtual int32_t getOutputShapes(const DimsExprs* inputs, int32_t num_inputs, const DimsExprs* shape_tensors,
                                  int32_t num_shape_tensors, DimsExprs* outputs, int32_t num_outputs,
                                  IExprBuilder& builder) noexcept = 0;
  virtual bool supportsFormatCombination(int32_t pos, const DynamicPluginTensorDesc* tensors, int32_t num_inputs,
                                         int32_t num_outputs) noexcept = 0;
  virtual int32_t getNbOutputs() const noexcept = 0;
  virtual size_t getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t num_inputs,
                                  const DynamicPluginTensorDesc* outputs, int32_t num_outputs) const noexcept = 0;
  // Tactics: variants that TensorRT times. None, and the default one is the only one.
  virtual int32_t getValidTactics(int32_t*, int32_t) noexcept { return 0; }
  virtual int32_t getNbTactics() noexcept { return 0; }
  virtual const char* getTimingCacheID() noexcept = 0;
  virtual int32_t getFormatCombinationLimit() noexcept { return 100; }  // how many TensorRT tries
  virtual const char* getMetadataString() noexcept = 0;
};

class IPluginV3OneRuntime : public IPluginCapability {
 public:
  InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN_V3ONE_RUNTIME", 1, 0}; }
  virtual int32_t setTactic(int32_t) noexcept { return 0; }
  virtual int32_t onShapeChange(const PluginTensorDesc* inputs, int32_t num_inputs, const PluginTensorDesc* outputs,
                                int32_t num_outputs) noexcept = 0;
  virtual int32_t enqueue(const PluginTensorDesc* input_descs, const PluginTensorDesc* output_descs,
                          const void* const* inputs, void* const* outputs, void* workspace,
                          CUstream_st* stream) noexcept = 0;
  virtual IPluginV3* attachToContext(IPluginResourceContext* context) noexcept = 0;
  virtual const PluginFieldCollection* getFieldsToSerialize() noexcept = 0;
};

// What a registry holds: creators of any generation.
class IPluginCreatorInterface : public IVersionedInterface {};

class IPluginCreatorV3One : public IPluginCreatorInterface {
 public:
  InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN CREATOR_V3ONE", 1, 0}; }
  virtual IPluginV3* createPlugin(const char* name, const PluginFieldCollection* fields,
                                  TensorRTPhase phase) noexcept = 0;
  virtual const PluginFieldCollection* getFieldNames() noexcept = 0;
  virtual const char* getPluginName() const noexcept = 0;
  virtual const char* getPluginVersion() const noexcept = 0;
  virtual const char* getPluginNamespace() const noexcept = 0;
};

}  // namespace v_1_0

using v_1_0::IPluginCapability;
using v_1_0::IPluginCreatorInterface;
using v_1_0::IPluginCreatorV3One;
using v_1_0::IPluginV3;
using v_1_0::IPluginV3OneBuild;
using v_1_0::IPluginV3OneCore;
using v_1_0::IPluginV3OneRuntime;

static_assert(sizeof(Dims) == 72 && offsetof(Dims, d) == 8);
static_assert(sizeof(DimsExprs) == 72 && offsetof(DimsExprs, d) == 8);
static_assert(sizeof(PluginTensorDesc) == 88 && offsetof(PluginTensorDesc, type) == 72);
static_assert(sizeof(DynamicPluginTensorDesc) == 304 && offsetof(DynamicPluginTensorDesc, opt) == 232);
static_assert(sizeof(PluginField) == 24 && offsetof(PluginField, type) == 16);
static_assert(sizeof(PluginFieldCollection) == 16 && offsetof(PluginFieldCollection, fields) == 8);
static_assert(sizeof(InterfaceInfo) == 16 && sizeof(IVersionedInterface) == sizeof(void*));
static_assert(sizeof(IDimensionExpr) == 2 * sizeof(void*) && sizeof(IExprBuilder) == 2 * sizeof(void*));

}  // namespace nvinfer1

#endif
