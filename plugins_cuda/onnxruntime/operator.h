// ONNX Runtime's custom operators around the table of a node (common/node.h): everything that does not depend on which
// operator it is. <room>/onnxruntime.cpp adds the room's nodes to a Domain; UPSNET_DEVICES, which CMake sets, names the
// devices that it has kernels for.
//
// A node has one CustomOp for each combination of types that its features may have (where no kernel takes the types of
// a node, ONNX Runtime refuses the model, even one whose file has the node's body), and for each device: OnCpu
// (on_cpu.h) or OnCuda (on_cuda.h), made for a kernel, with
//   static constexpr const char* kProvider;                                ONNX Runtime's; null: the CPU's
//   const char* run(const Operator&, const Call&, const Context&) const;   null, or why it failed; throws, too
// A kernel keeps its attributes and its device, so that sessions and threads may run it at once.
#pragma once

#include <array>
#include <cstdint>
#include <iterator>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "common/node.h"
#include "onnxruntime/abi.h"
#include "onnxruntime/attributes.h"
#include "onnxruntime/context.h"
#include "onnxruntime/on_cpu.h"
#include "onnxruntime/on_cuda.h"

namespace upsnet::onnxruntime {

template <typename Operator, int32_t kNode, typename Device>
class Kernel {
  static constexpr Node kThis = Operator::kNodes[kNode];
  static constexpr int32_t kNumInputs = kThis.num_inputs, kNumOutputs = std::size(Operator::kOutputs);

 public:
  using Types = std::array<DType, kNumInputs>;  // of each input's features; of another input it does not matter

  Kernel(const Api& api, const KernelInfo* info, const Types& types) : api_(api), types_(types), device_(api, info) {
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
      inputs[i] = context.input(i, Operator::kInputs[i].name, shapes[i]);
      arguments[i] = {shapes[i], types_[i]};
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
    if (const char* why = device_.run(op_, call, context)) {
      throw std::runtime_error(why + (" with " + sizes_of(Operator::kInputs, arguments.data(), kNumInputs)));
    }
  }

 private:
  [[noreturn]] static void refuse(const std::string& why, const Argument* arguments) {
    throw std::invalid_argument("no kernel runs " + why + ": " + sizes_of(Operator::kInputs, arguments, kNumInputs));
  }

  Operator op_;
  const Api& api_;
  const Types types_;
  const Device device_;
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

template <typename Operator, int32_t kNode, typename Device>
struct Op final : CustomOp {
  using Made = Kernel<Operator, kNode, Device>;
  using Types = typename Made::Types;
  static constexpr Node kThis = Operator::kNodes[kNode];

  // What ONNX Runtime keeps of a node.
  struct Instance {
    const Api& api;
    Made kernel;
  };

  Op(const Api& api, const Types& types) : CustomOp{}, api(api), types(types) {
    version = kCustomOpVersion;
    GetName = [](const CustomOp*) { return kThis.name; };
    GetExecutionProviderType = [](const CustomOp*) { return Device::kProvider; };
    GetInputTypeCount = [](const CustomOp*) -> size_t { return kThis.num_inputs; };
    GetOutputTypeCount = [](const CustomOp*) -> size_t { return std::size(Operator::kOutputs); };
    GetInputType = [](const CustomOp* op, size_t i) {
      return element_type(Operator::kInputs[i].type, static_cast<const Op*>(op)->types[i]);
    };
    GetOutputType = [](const CustomOp* op, size_t i) {
      return element_type(Operator::kOutputs[i].type, static_cast<const Op*>(op)->types[0]);
    };
    GetInputCharacteristic = [](const CustomOp*, size_t) { return kRequired; };
    GetOutputCharacteristic = [](const CustomOp*, size_t) { return kRequired; };
    GetInputMemoryType = [](const CustomOp*, size_t) { return kDefaultMemory; };
    CreateKernelV2 = [](const CustomOp* op, const Api*, const KernelInfo* info, void** kernel) {
      const Op& self = *static_cast<const Op*>(op);
      return guarded(self.api, kThis.name, [&] { *kernel = new Instance{self.api, Made(self.api, info, self.types)}; });
    };
    KernelComputeV2 = [](void* kernel, KernelContext* context) {
      const Instance& instance = *static_cast<const Instance*>(kernel);
      return guarded(instance.api, kThis.name, [&] { instance.kernel.compute(context); });
    };
    KernelDestroy = [](void* kernel) { delete static_cast<Instance*>(kernel); };
  }

  static bool has_features(size_t input) { return Operator::kInputs[input].type == Type::kFeatures; }

  static ElementType element_type(Type type, DType features) {
    switch (type) {
      case Type::kFloat32: return kFloat;
      case Type::kInt32: return kInt32;
      case Type::kInt64: return kInt64;
      case Type::kUInt8: return kUint8;
      case Type::kFeatures:
      case Type::kLikeFirstInput: break;
    }
    switch (features) {
      case DType::kFloat16: return kFloat16;
      case DType::kBFloat16: return kBFloat16;
      case DType::kFloat32: break;
    }
    return kFloat;
  }

  const Api& api;  // of kApiVersion; ONNX Runtime hands a kernel that of kCustomOpVersion
  const Types types;
};

// Where the rooms put their operators. ONNX Runtime keeps pointers to them: they are never destroyed.
class Domain {
 public:
  Domain(const Api& api, CustomOpDomain* domain) : api_(api), domain_(domain) {}

  // All nodes of a room, for the devices that this library has kernels for.
  template <typename Operator>
  void add() {
    add_for<Operator, UPSNET_DEVICES>();
  }

  // Those of a room without a launcher, where this library has kernels for the CPU alone. Beside kernels for CUDA they
  // would draw their nodes to the CPU, with copies to and fro, where the bodies run on the GPU.
  template <typename Operator>
  void add_for_cpu() {
    if constexpr (kOnlyCpu) add<Operator>();
  }
  void add_for_cpu(CustomOp* made) {
    if (kOnlyCpu) check(api_.CustomOpDomain_Add(domain_, made));
  }

 private:
  static constexpr bool kOnlyCpu = std::is_same_v<std::tuple<UPSNET_DEVICES>, std::tuple<OnCpu>>;

  template <typename Operator, typename... Devices>
  void add_for() {
    (add_nodes<Operator, Devices>(std::make_integer_sequence<int32_t, std::size(Operator::kNodes)>()), ...);
  }

  template <typename Operator, typename Device, int32_t... kNodes>
  void add_nodes(std::integer_sequence<int32_t, kNodes...>) {
    (add_node<Op<Operator, kNodes, Device>>(), ...);
  }

  template <typename Made>
  void add_node(typename Made::Types types = {}, size_t first = 0) {
    for (; first < types.size() && !Made::has_features(first); ++first) types[first] = types[0];
    if (first == types.size()) return check(api_.CustomOpDomain_Add(domain_, new Made(api_, types)));
    for (const DType features : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      types[first] = features;
      add_node<Made>(types, first + 1);
    }
  }

  const Api& api_;
  CustomOpDomain* const domain_;
};

}  // namespace upsnet::onnxruntime
