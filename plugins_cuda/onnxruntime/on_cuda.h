// Kernels of ONNX Runtime's CUDA provider: the launchers, on the call's stream. Inputs and outputs are in the device's
// memory, nothing is copied and nothing waits. ONNX Runtime has made its device the current one.
#pragma once

#include <memory>

#include "common/node.h"
#include "onnxruntime/abi.h"
#include "onnxruntime/context.h"

namespace upsnet::onnxruntime {

const char* cuda_error(int status);  // CUDA's own words

class OnCuda {
 public:
  static constexpr const char* kProvider = "CUDAExecutionProvider";

  OnCuda(const Api& api, const KernelInfo* info) : api_(api), allocator_(nullptr, api.ReleaseAllocator) {
    Allocator* allocator = nullptr;
    check(api.KernelInfoGetAllocator(info, kDefaultMemory, &allocator));
    allocator_.reset(allocator);
    check(api.AllocatorGetInfo(allocator, &memory_));
  }

  template <typename Operator>
  const char* run(const Operator& op, const Call& call, const Context& context) const {
    CUstream_st* const stream = context.stream();
    const size_t bytes = op.workspace_size(call);
    const auto workspace = allocate(context, bytes, stream);
    const int status = op.launch(call, workspace.get(), bytes, stream);
    return status == 0 ? nullptr : cuda_error(status);
  }

 private:
  // Gives memory back as soon as the kernels are in the stream: what takes it next comes after them in that stream, or
  // in another one that has waited for it. The allocator, which knows the stream, sees to that.
  struct Free {
    const OnCuda& device;
    void operator()(void* data) const {
      Status* const status = device.api_.AllocatorFree(device.allocator_.get(), data);
      if (status != nullptr) device.api_.ReleaseStatus(status);
    }
  };

  // Without a stream, as in the emulator, the allocator has none to know.
  std::unique_ptr<void, Free> allocate(const Context& context, size_t bytes, CUstream_st* stream) const {
    void* data = nullptr;
    if (bytes > 0) {
      check(stream == nullptr ? api_.AllocatorAlloc(allocator_.get(), bytes, &data)
                              : api_.KernelContext_GetScratchBuffer(context.handle(), memory_, bytes, &data));
    }
    return {data, Free{*this}};
  }

  const Api& api_;
  std::unique_ptr<Allocator, void (*)(Allocator*)> allocator_;
  const MemoryInfo* memory_ = nullptr;
};

// The same as kernels of the CPU's provider, for launchers that the emulator runs (tests).
class OnEmulator : public OnCuda {
 public:
  static constexpr const char* kProvider = nullptr;
  using OnCuda::OnCuda;
};

}  // namespace upsnet::onnxruntime
