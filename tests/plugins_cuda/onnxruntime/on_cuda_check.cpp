// What the kernels for CUDA ask of ONNX Runtime and of a launcher, call by call: a table of its functions and an
// operator that write down how they are called. One argument: a library; then what it registers.
#include <dlfcn.h>

#include <cstdio>
#include <string>
#include <vector>

#include "onnxruntime/on_cuda.h"
#include "onnxruntime/operator.h"

namespace upsnet::onnxruntime {

const char* cuda_error(int status) { return status == 700 ? "an illegal memory access was encountered" : "other"; }

namespace {

// What ONNX Runtime only passes on, as numbers that tell who is who.
template <typename T>
T* handle(uintptr_t number) {
  return reinterpret_cast<T*>(number);
}
uintptr_t number(const void* handle) { return reinterpret_cast<uintptr_t>(handle); }

template <typename... Values>
void say(const char* format, Values... values) {
  std::printf(format, values...);
  std::printf("\n");
}

uintptr_t stream = 0x57;
bool has_memory = true;

// Every function that is not set is null: calling it ends the program.
Api recording() {
  Api api{};
  api.KernelInfoGetAllocator = [](const KernelInfo* info, MemoryType memory, Allocator** out) -> Status* {
    say("KernelInfoGetAllocator info=%zx memory=%d", number(info), memory);
    *out = handle<Allocator>(0xa1);
    return nullptr;
  };
  api.AllocatorGetInfo = [](const Allocator* allocator, const MemoryInfo** out) -> Status* {
    say("AllocatorGetInfo allocator=%zx", number(allocator));
    *out = handle<MemoryInfo>(0x3e);
    return nullptr;
  };
  api.ReleaseAllocator = [](Allocator* allocator) { say("ReleaseAllocator allocator=%zx", number(allocator)); };
  api.KernelContext_GetGPUComputeStream = [](const KernelContext* context, void** out) -> Status* {
    say("KernelContext_GetGPUComputeStream context=%zx", number(context));
    *out = handle<void>(stream);
    return nullptr;
  };
  api.KernelContext_GetScratchBuffer = [](const KernelContext* context, const MemoryInfo* memory, size_t bytes,
                                          void** out) {
    say("KernelContext_GetScratchBuffer context=%zx memory=%zx bytes=%zu", number(context), number(memory), bytes);
    *out = handle<void>(has_memory ? 0xda7a : 0);
    return has_memory ? nullptr : handle<Status>(0xbad);
  };
  api.AllocatorAlloc = [](Allocator* allocator, size_t bytes, void** out) -> Status* {
    say("AllocatorAlloc allocator=%zx bytes=%zu", number(allocator), bytes);
    *out = handle<void>(0xda7b);
    return nullptr;
  };
  api.AllocatorFree = [](Allocator* allocator, void* data) -> Status* {
    say("AllocatorFree allocator=%zx data=%zx", number(allocator), number(data));
    return nullptr;
  };
  return api;
}

struct Operator {
  size_t bytes = 768;
  int status = 0;
  size_t workspace_size(const Call&) const { return bytes; }
  int launch(const Call&, void* workspace, size_t given, CUstream_st* on) const {
    say("launch workspace=%zx bytes=%zu stream=%zx", number(workspace), given, number(on));
    return status;
  }
};

void run(const char* what, const Operator& op) {
  say("== %s", what);
  const Api api = recording();
  const Context context(api, handle<KernelContext>(0xc0));
  const Call call{0, nullptr};
  const OnCuda device(api, handle<KernelInfo>(0x1f));
  try {
    const char* const why = device.run(op, call, context);
    say("returned %s", why == nullptr ? "nothing" : why);
  } catch (const Failure& failure) { say("threw status=%zx", number(failure.status)); }
}

void list(const char* path) {
  void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return say("%s", dlerror());
  using Register = Status* (*)(SessionOptions*, const ApiBase*);
  const auto register_operators = reinterpret_cast<Register>(dlsym(library, "RegisterCustomOps"));
  static Api api{};
  api.CreateCustomOpDomain = [](const char* domain, CustomOpDomain** out) -> Status* {
    say("domain %s", domain);
    *out = handle<CustomOpDomain>(0xd0);
    return nullptr;
  };
  api.CustomOpDomain_Add = [](CustomOpDomain*, const CustomOp* op) -> Status* {
    const char* const provider = op->GetExecutionProviderType(op);
    std::printf("%s %s", provider == nullptr ? "CPUExecutionProvider" : provider, op->GetName(op));
    for (size_t i = 0; i < op->GetInputTypeCount(op); ++i) {
      std::printf(" %d%s", op->GetInputType(op, i), op->GetInputMemoryType(op, i) == kDefaultMemory ? "" : "(host)");
    }
    std::printf(" ->");
    for (size_t i = 0; i < op->GetOutputTypeCount(op); ++i) std::printf(" %d", op->GetOutputType(op, i));
    std::printf("\n");
    return nullptr;
  };
  api.AddCustomOpDomain = [](SessionOptions*, CustomOpDomain*) -> Status* { return nullptr; };
  const ApiBase base{[](uint32_t) -> const Api* { return &api; }, [] { return "a fake"; }};
  say("error %zx", number(register_operators(nullptr, &base)));
}

}  // namespace
}  // namespace upsnet::onnxruntime

int main(int count, char** arguments) {
  using namespace upsnet::onnxruntime;
  if (count > 1) return list(arguments[1]), 0;
  run("a launch", {});
  run("without a workspace", {0, 0});
  run("a launch that fails", {768, 700});
  has_memory = false;
  run("no memory", {});
  has_memory = true;
  stream = 0;
  run("without a stream", {});
}
