// An operator as a node of a graph: its inputs and outputs, and what follows from them for whoever calls it. The faces
// for TensorRT (tensorrt/plugin_base.h) and for ONNX Runtime (onnxruntime/operator.h) are made from the same table.
//
// An Operator is a plain struct of attributes, <room>/declared.h (made from <room>/schema.py), with
//   static constexpr Node kNodes[];                                 the ONNX nodes that it serves
//   static constexpr Tensor kInputs[], kOutputs[];
//   template <...> static void attributes(Self&, Visitor&);         names them: required(name, value), optional(...)
//   void check() const;                                             their values; throws
//   void check_sizes(const Shape* inputs, int32_t count) const;     what patterns of shapes cannot say; throws
//   template <...> void output_shapes(const Shapes* inputs, Shapes* outputs, Dimensions&) const;
//   Params params(const Call&) const;                               for the launcher and the CPU front
//   const char* unsupported(const Call&) const;                     why no kernel runs these sizes; null
//   size_t workspace_size(const Call&) const;
//   int launch(const Call&, void* workspace, size_t bytes, CUstream_st*) const;   a cudaError_t
//   int run_cpu(const Call&, const Pool&) const;                                  0, or as in launch.h
// <room>/node.h derives from it where there is more to check.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

#include "common/types.h"

namespace upsnet {

enum class Type { kFeatures, kLikeFirstInput, kFloat32, kInt32, kInt64, kUInt8 };  // kFeatures: fp32, fp16 or bf16

struct Node {
  const char* name;
  int32_t num_inputs;  // the first ones of kInputs
};

struct Shape {
  static constexpr int32_t kMaxRank = 8;
  int32_t rank;
  int64_t d[kMaxRank];  // -1: not known yet
};

// "B C H W": equal letters are equal sizes in all inputs, numbers are themselves. The compiler takes it apart.
struct Pattern {
  struct Axis {
    std::string_view word;
    int64_t number = -1;  // -1: a letter
  };
  const char* text;
  int32_t rank = 0;
  Axis axes[Shape::kMaxRank] = {};

  constexpr Pattern(const char* shape) : text(shape) {
    std::string_view left = shape;
    while (!left.empty()) {
      Axis& axis = axes[rank++];
      axis.word = left.substr(0, left.find(' '));
      left.remove_prefix(axis.word.size() + (axis.word.size() < left.size()));
      if (axis.word[0] < '0' || axis.word[0] > '9') continue;
      axis.number = 0;
      for (const char digit : axis.word) axis.number = axis.number * 10 + (digit - '0');
    }
  }
};

// One input or output. All tensors that may be channels-last have one layout.
struct Tensor {
  const char* name;
  Pattern shape;
  Type type;
  bool may_be_channels_last = false;
};

bool is_known(const Shape& shape);
std::string to_string(const Shape& shape);  // "[1 20 4]"

// Holds the inputs' sizes against their patterns; -1 fits everything. std::invalid_argument with the tensor's name and
// both shapes.
void check_shapes(const Tensor* tensors, const Shape* shapes, int32_t count);

inline void require(bool condition, const char* otherwise) {
  if (!condition) throw std::invalid_argument(otherwise);
}

// An input, but for its data.
struct Argument {
  Shape shape;
  DType type = DType::kFloat32;  // of features
  Layout layout = Layout::kNCHW;
};

// "boxes [1 20 4], scores [1 20]"
std::string sizes_of(const Tensor* tensors, const Argument* arguments, int32_t count);

// The tensors of one call; without data when only sizes are asked for.
struct Call {
  int32_t num_inputs;
  const Argument* inputs;
  const void* const* input_data = nullptr;
  void* const* output_data = nullptr;

  int32_t size(int32_t input, int32_t axis) const { return static_cast<int32_t>(inputs[input].shape.d[axis]); }
  DType type(int32_t input) const { return inputs[input].type; }
  Layout layout(int32_t input) const { return inputs[input].layout; }
  // Null is an optional input that the node does not have; never one whose data is not there yet.
  template <typename T = void>
  const T* input(int32_t index) const {
    static constexpr int64_t kNoData = 0;
    const void* const data = input_data == nullptr ? &kNoData : input_data[index < num_inputs ? index : 0];
    return index < num_inputs ? static_cast<const T*>(data) : nullptr;
  }
  template <typename T = void>
  T* output(int32_t index) const {
    return output_data == nullptr ? nullptr : static_cast<T*>(output_data[index]);
  }
};

// Output shapes of inputs whose sizes are numbers.
struct Numbers {
  static int64_t constant(int64_t value) { return value; }
  static int64_t sum(int64_t dim, int64_t more) { return dim + more; }
  static int64_t product(int64_t dim, int64_t factor) { return dim * factor; }
  template <typename... Sizes>
  static Shape shape(Sizes... sizes) {
    return {static_cast<int32_t>(sizeof...(sizes)), {sizes...}};
  }
};

}  // namespace upsnet
