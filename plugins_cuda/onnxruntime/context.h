// One call of an operator: its tensors, and its threads or its stream, which are the session's.
#pragma once

#include <sched.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>

#include "common/node.h"
#include "common/pool.h"
#include "onnxruntime/abi.h"

namespace upsnet::onnxruntime {

// An error that ONNX Runtime itself found.
struct Failure {
  Status* status;
};

inline void check(Status* status) {
  if (status != nullptr) throw Failure{status};
}

// As many threads as this process may run on. ONNX Runtime does not say how many a session has: with fewer, some slots
// find nothing left to do.
inline int most_threads() {
  static const int count = [] {
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  }();
  return count;
}

class Context {
 public:
  Context(const Api& api, KernelContext* context) : api_(api), context_(context) {}

  // The data of an input, and its shape. name: for errors.
  const void* input(int32_t index, const char* name, Shape& shape) const {
    const Value* value = nullptr;
    check(api_.KernelContext_GetInput(context_, index, &value));
    if (value == nullptr) throw std::invalid_argument(std::string(name) + " is missing");
    TensorInfo* info = nullptr;
    check(api_.GetTensorTypeAndShape(value, &info));
    const std::unique_ptr<TensorInfo, void (*)(TensorInfo*)> held(info, api_.ReleaseTensorTypeAndShapeInfo);
    size_t rank = 0;
    check(api_.GetDimensionsCount(info, &rank));
    if (rank > Shape::kMaxRank)
      throw std::invalid_argument(std::string(name) + " has " + std::to_string(rank) + " dimensions");
    shape.rank = static_cast<int32_t>(rank);
    check(api_.GetDimensions(info, shape.d, rank));
    void* data = nullptr;
    check(api_.GetTensorMutableData(const_cast<Value*>(value), &data));
    return data;
  }

  void* output(int32_t index, const Shape& shape) const {
    Value* value = nullptr;
    check(api_.KernelContext_GetOutput(context_, index, shape.d, shape.rank, &value));
    void* data = nullptr;
    check(api_.GetTensorMutableData(value, &data));
    return data;
  }

  // The GPU's, where the call's provider has one.
  CUstream_st* stream() const {
    void* stream = nullptr;
    check(api_.KernelContext_GetGPUComputeStream(context_, &stream));
    return static_cast<CUstream_st*>(stream);
  }
  const KernelContext* handle() const { return context_; }

  // Valid as long as this is.
  Pool pool() const { return {most_threads(), run, const_cast<Context*>(this)}; }

 private:
  struct Task {
    void (*body)(void* context, int slot);
    void* context;
  };

  static void run(const Pool& pool, int slots, void (*body)(void* context, int slot), void* context) {
    const Context& self = *static_cast<const Context*>(pool.state);
    Task task{body, context};
    const auto call = [](void* data, size_t slot) {
      const Task& each = *static_cast<const Task*>(data);
      each.body(each.context, static_cast<int>(slot));
    };
    check(self.api_.KernelContext_ParallelFor(self.context_, call, slots, slots, &task));
  }

  const Api& api_;
  KernelContext* const context_;
};

}  // namespace upsnet::onnxruntime
