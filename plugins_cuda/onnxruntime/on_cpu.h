// Kernels of the CPU's execution provider: the CPU fronts, on the session's threads.
#pragma once

#include <new>

#include "common/node.h"
#include "onnxruntime/abi.h"
#include "onnxruntime/context.h"

namespace upsnet::onnxruntime {

class OnCpu {
 public:
  static constexpr const char* kProvider = nullptr;

  OnCpu(const Api&, const KernelInfo*) {}

  template <typename Operator>
  const char* run(const Operator& op, const Call& call, const Context& context) const {
    const int status = op.run_cpu(call, context.pool());
    if (status == kNoMemory) throw std::bad_alloc();
    return status == 0 ? nullptr : "no kernel runs what it was given,";
  }

 private:
  static constexpr int kNoMemory = 2;  // cudaErrorMemoryAllocation
};

}  // namespace upsnet::onnxruntime
