// ONNX Runtime's custom operators around the table of a node (common/node.h): everything that does not depend on which
// operator it is. <room>/onnxruntime.cpp adds the room's nodes to a Domain.
//
// A node has one CustomOp for each type that its features may have. A kernel keeps its attributes and nothing else, so
// that sessions and threads may run it at once.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include "common/node.h"
#include "onnxruntime/abi.h"
#include "onnxruntime/attributes.h"
#include "onnxruntime/context.h"

namespace upsnet::onnxruntime {

template <typename Operator, int32_t kNode>
class Kernel {
  static constexpr Node kThis = Operator::kNodes[kNode];
  static constexpr int32_t kNumInputs = kThis.num_inputs, kNumOutputs = std::size(Operator::kOutputs);

 public:
  Kernel(const Api& api, const KernelInfo* info, DType features) : api_(api), features_(features) {
    const AttributeReader reader(api, info);
    Operator::attributes(op_, reader);
    op_.check();
  }

  void compute(KernelContext* session) const {
    const Context context(api_, session);
    std::array<Shape, kNumInputs> shapes;
    std::array<Argument, kNumInputs> arguments;
    std::array<const void*, kNumInputs> inputs;
    for (int32_t i = 0; i < kNumInputs; ++i) {
      inputs[i] = context.input(i, shapes[i]);
      arguments[i] = {shapes[i], features_};
    }
    check_shapes(Operator::kInputs, shapes.data(), kNumInputs);
    op_.check_sizes(shapes.data(), kNumInputs);
    if (const char* why = op_.unsupported({kNumInputs, arguments.data()})) refuse(why, arguments.data());

    std::array<Shape, kNumOutputs> output_shapes;
    std::array<void*, kNumOutputs> outputs;
    Numbers numbers;
    op_.output_shapes(shapes.data(), output_shapes.data(), numbers);
    for (int32_t i = 0; i < kNumOutputs; ++i) outputs[i] = context.output(i, output_shapes[i]);
    const Call call{kNumInputs, arguments.data(), inputs.data(), outputs.data()};
    const int status = op_.run_cpu(call, context.pool());
    if (status == kNoMemory) throw std::bad_alloc();
    if (status != 0) refuse("what it was given", arguments.data());
  }

 private:
  static constexpr int kNoMemory = 2;  // cudaErrorMemoryAllocation

  [[noreturn]] static void refuse(const std::string& why, const Argument* arguments) {
    throw std::invalid_argument("no kernel runs " + why + ": " + sizes_of(Operator::kInputs, arguments, kNumInputs));
  }

  Operator op_;
  const Api& api_;
  const DType features_;
};

// Runs `body`; what it throws becomes ONNX Runtime's error, with the operator's name.
template <typename Body>
Status* guarded(const Api& api, const char* name, Body body) noexcept {
  const auto failure = [&](ErrorCode code, const char* what) {
    try {
      return api.CreateStatus(code, (std::string("upsnet::") + name + ": " + what).c_str());
    } catch (const std::bad_alloc&) { return api.CreateStatus(kFail, name); }
  };
  try {
    body();
    return nullptr;
  } catch (const Failure& of_the_runtime) { return of_the_runtime.status; } catch (const std::invalid_argument& error) {
    return failure(kInvalidArgument, error.what());
  } catch (const std::bad_alloc&) { return failure(kFail, "not enough memory"); } catch (const std::exception& error) {
    return failure(kRuntimeException, error.what());
  }
}

template <typename Operator, int32_t kNode>
struct Op final : CustomOp {
  using Made = Kernel<Operator, kNode>;
  static constexpr Node kThis = Operator::kNodes[kNode];

  // What ONNX Runtime keeps of a node.
  struct Instance {
    const Api& api;
    Made kernel;
  };

  explicit Op(DType features) : CustomOp{}, features(features) {
    version = kCustomOpVersion;
    GetName = [](const CustomOp*) { return kThis.name; };
    GetExecutionProviderType = [](const CustomOp*) -> const char* { return nullptr; };
    GetInputTypeCount = [](const CustomOp*) -> size_t { return kThis.num_inputs; };
    GetOutputTypeCount = [](const CustomOp*) -> size_t { return std::size(Operator::kOutputs); };
    GetInputType = [](const CustomOp* op, size_t i) { return element_type(op, Operator::kInputs[i].type); };
    GetOutputType = [](const CustomOp* op, size_t i) { return element_type(op, Operator::kOutputs[i].type); };
    GetInputCharacteristic = [](const CustomOp*, size_t) { return kRequired; };
    GetOutputCharacteristic = [](const CustomOp*, size_t) { return kRequired; };
    GetInputMemoryType = [](const CustomOp*, size_t) { return kDefaultMemory; };
    CreateKernelV2 = [](const CustomOp* op, const Api* api, const KernelInfo* info, void** kernel) {
      return guarded(*api, kThis.name,
                     [&] { *kernel = new Instance{*api, Made(*api, info, static_cast<const Op*>(op)->features)}; });
    };
    KernelComputeV2 = [](void* kernel, KernelContext* context) {
      const Instance& instance = *static_cast<const Instance*>(kernel);
      return guarded(instance.api, kThis.name, [&] { instance.kernel.compute(context); });
    };
    KernelDestroy = [](void* kernel) { delete static_cast<Instance*>(kernel); };
  }

  static ElementType element_type(const CustomOp* op, Type type) {
    switch (type) {
      case Type::kFloat32: return kFloat;
      case Type::kInt32: return kInt32;
      case Type::kInt64: return kInt64;
      case Type::kUInt8: return kUint8;
      case Type::kFeatures:
      case Type::kLikeFirstInput: break;
    }
    switch (static_cast<const Op*>(op)->features) {
      case DType::kFloat16: return kFloat16;
      case DType::kBFloat16: return kBFloat16;
      case DType::kFloat32: break;
    }
    return kFloat;
  }

  const DType features;
};

// Where the rooms put their operators. ONNX Runtime keeps pointers to them: they are never destroyed.
class Domain {
 public:
  Domain(const Api& api, CustomOpDomain* domain) : api_(api), domain_(domain) {}

  // All nodes of a room.
  template <typename Operator>
  void add() {
    add_nodes<Operator>(std::make_integer_sequence<int32_t, std::size(Operator::kNodes)>());
  }

 private:
  template <typename Operator, int32_t... kNodes>
  void add_nodes(std::integer_sequence<int32_t, kNodes...>) {
    (add_node<Operator, kNodes>(), ...);
  }

  template <typename Operator, int32_t kNode>
  void add_node() {
    const auto has_features = [](const Tensor& tensor) { return tensor.type == Type::kFeatures; };
    const bool varies = std::any_of(std::begin(Operator::kInputs), std::end(Operator::kInputs), has_features);
    for (const DType features : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      if (features != DType::kFloat32 && !varies) continue;
      check(api_.CustomOpDomain_Add(domain_, new Op<Operator, kNode>(features)));
    }
  }

  const Api& api_;
  CustomOpDomain* const domain_;
};

}  // namespace upsnet::onnxruntime
