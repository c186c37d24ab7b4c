// The binary interface between ONNX Runtime and a library of custom operators, so that nobody's headers are needed.
//
// Declared from ONNX Runtime's documentation of its C interface, with what these operators use and nothing else. What
// counts is binary: the places of the functions in OrtApi's table and of OrtCustomOp's members, and values. The table
// only ever grows at its end, so this serves every release from kApiVersion on.
// tests/plugins_cuda/onnxruntime/test_abi.py holds it against the real header, where there is one.
#pragma once

#include <cstddef>
#include <cstdint>

namespace upsnet::onnxruntime {

constexpr uint32_t kApiVersion = 18;       // ONNX Runtime 1.18: the last function below, KernelInfoGetAllocator
constexpr uint32_t kCustomOpVersion = 16;  // CustomOp ends with KernelComputeV2

// What is only passed on.
struct Status;
struct SessionOptions;
struct CustomOpDomain;
struct KernelInfo;
struct KernelContext;
struct Value;
struct TensorInfo;
struct MemoryInfo;
struct Allocator;

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2, kRuntimeException = 6 };
enum ElementType : int {
  kUndefined = 0,
  kFloat = 1,
  kUint8 = 2,
  kInt32 = 6,
  kInt64 = 7,
  kFloat16 = 10,
  kBFloat16 = 16,
};
enum MemoryType : int { kDefaultMemory = 0 };
enum Characteristic : int { kRequired = 0 };

// OrtApi. Null is a success; a Status that is not is the caller's, to be released or handed on.
struct Api {
  using Unused = void (*)();
  Status* (*CreateStatus)(ErrorCode code, const char* message);
  Unused before_domains[25];
  Status* (*CreateCustomOpDomain)(const char* domain, CustomOpDomain** out);
  Status* (*CustomOpDomain_Add)(CustomOpDomain* domain, const struct CustomOp* op);
  Status* (*AddCustomOpDomain)(SessionOptions* options, CustomOpDomain* domain);
  Unused before_data[22];
  Status* (*GetTensorMutableData)(Value* value, void** out);
  Unused before_dimensions[9];
  Status* (*GetDimensionsCount)(const TensorInfo* info, size_t* out);
  Status* (*GetDimensions)(const TensorInfo* info, int64_t* dimensions, size_t count);
  Unused before_info[2];
  Status* (*GetTensorTypeAndShape)(const Value* value, TensorInfo** out);
  Unused before_allocator[9];
  Status* (*AllocatorAlloc)(Allocator* allocator, size_t bytes, void** out);
  Status* (*AllocatorFree)(Allocator* allocator, void* data);
  Status* (*AllocatorGetInfo)(const Allocator* allocator, const MemoryInfo** out);
  Unused before_attributes[7];
  Status* (*KernelInfoGetAttribute_float)(const KernelInfo* info, const char* name, float* out);
  Status* (*KernelInfoGetAttribute_int64)(const KernelInfo* info, const char* name, int64_t* out);
  Status* (*KernelInfoGetAttribute_string)(const KernelInfo* info, const char* name, char* out, size_t* size);
  Status* (*KernelContext_GetInputCount)(const KernelContext* context, size_t* out);
  Status* (*KernelContext_GetOutputCount)(const KernelContext* context, size_t* out);
  Status* (*KernelContext_GetInput)(const KernelContext* context, size_t index, const Value** out);
  Status* (*KernelContext_GetOutput)(KernelContext* context, size_t index, const int64_t* dimensions, size_t count,
                                     Value** out);
  Unused before_release;
  void (*ReleaseStatus)(Status* status);
  Unused before_release_info[5];
  void (*ReleaseTensorTypeAndShapeInfo)(TensorInfo* info);
  Unused before_release_allocator[32];
  void (*ReleaseAllocator)(Allocator* allocator);
  Unused before_arrays[29];
  Status* (*KernelInfoGetAttributeArray_float)(const KernelInfo* info, const char* name, float* out, size_t* size);
  Status* (*KernelInfoGetAttributeArray_int64)(const KernelInfo* info, const char* name, int64_t* out, size_t* size);
  Unused before_stream[29];
  Status* (*KernelContext_GetGPUComputeStream)(const KernelContext* context, void** out);
  Unused before_count[36];
  Status* (*KernelInfo_GetInputCount)(const KernelInfo* info, size_t* out);
  Unused before_parallel[43];
  // Calls task(data, i) for every i in 0..total-1, on the threads of the session, in num_batch parts.
  Status* (*KernelContext_ParallelFor)(const KernelContext* context, void (*task)(void* data, size_t i), size_t total,
                                       size_t num_batch, void* data);
  Unused before_scratch[2];
  // Memory for the call's stream, which must be there, from the allocator of that memory; the caller gives it back.
  Status* (*KernelContext_GetScratchBuffer)(const KernelContext* context, const MemoryInfo* memory, size_t bytes,
                                            void** out);
  // The allocator of the node's execution provider: of its device, and the one that its own kernels use.
  Status* (*KernelInfoGetAllocator)(const KernelInfo* info, MemoryType memory, Allocator** out);
};

// OrtApiBase, which a library is registered with. GetApi gives null for a version that is newer than the runtime.
struct ApiBase {
  const Api* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

// OrtCustomOp: one kernel of one operator. ONNX Runtime hands it to its functions as their first argument.
struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp* op, const Api* api, const KernelInfo* info);
  const char* (*GetName)(const CustomOp* op);
  const char* (*GetExecutionProviderType)(const CustomOp* op);  // null: the CPU
  ElementType (*GetInputType)(const CustomOp* op, size_t index);
  size_t (*GetInputTypeCount)(const CustomOp* op);
  ElementType (*GetOutputType)(const CustomOp* op, size_t index);
  size_t (*GetOutputTypeCount)(const CustomOp* op);
  void (*KernelCompute)(void* kernel, KernelContext* context);
  void (*KernelDestroy)(void* kernel);
  Characteristic (*GetInputCharacteristic)(const CustomOp* op, size_t index);
  Characteristic (*GetOutputCharacteristic)(const CustomOp* op, size_t index);
  MemoryType (*GetInputMemoryType)(const CustomOp* op, size_t index);
  int (*GetVariadicInputMinArity)(const CustomOp* op);
  int (*GetVariadicInputHomogeneity)(const CustomOp* op);
  int (*GetVariadicOutputMinArity)(const CustomOp* op);
  int (*GetVariadicOutputHomogeneity)(const CustomOp* op);
  Status* (*CreateKernelV2)(const CustomOp* op, const Api* api, const KernelInfo* info, void** kernel);
  Status* (*KernelComputeV2)(void* kernel, KernelContext* context);
};

}  // namespace upsnet::onnxruntime
