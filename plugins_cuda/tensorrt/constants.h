// Dimensions that are known, as TensorRT's expressions: for who plays TensorRT to a plugin.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "tensorrt/abi/plugin.h"

namespace upsnet::tensorrt {

class Constant final : public nvinfer1::IDimensionExpr {
 public:
  explicit Constant(int64_t value) : value_(value) { mImpl = &value_; }

 private:
  struct Value final : nvinfer1::apiv::VDimensionExpr {
    explicit Value(int64_t value) : value(value) {}
    bool isConstant() const override { return true; }
    int64_t getConstantValue() const override { return value; }
    bool isSizeTensor() const override { return false; }
    const int64_t value;
  };
  Value value_;
};

// Makes expressions, evaluated at once, which live as long as it does.
class Constants final : public nvinfer1::IExprBuilder {
  using Expression = nvinfer1::IDimensionExpr;
  using Operation = nvinfer1::DimensionOperation;

 public:
  Constants() { mImpl = &made_; }
  const Expression* make(int64_t value) { return made_.constant(value); }
  nvinfer1::DimsExprs of(const nvinfer1::Dims& dims) {
    nvinfer1::DimsExprs expressions{};
    expressions.nbDims = dims.nbDims;
    for (int32_t axis = 0; axis < dims.nbDims; ++axis) expressions.d[axis] = make(dims.d[axis]);
    return expressions;
  }
  static nvinfer1::Dims dims(const nvinfer1::DimsExprs& expressions) {
    nvinfer1::Dims dims{};
    dims.nbDims = expressions.nbDims;
    for (int32_t axis = 0; axis < dims.nbDims; ++axis) dims.d[axis] = expressions.d[axis]->getConstantValue();
    return dims;
  }

 private:
  struct Made final : nvinfer1::apiv::VExprBuilder {
    const Expression* constant(int64_t value) override {
      expressions.push_back(std::make_unique<Constant>(value));
      return expressions.back().get();
    }
    const Expression* operation(Operation operation, const Expression& a, const Expression& b) override {
      const int64_t first = a.getConstantValue(), second = b.getConstantValue();
      switch (operation) {
        case Operation::kSUM: return constant(first + second);
        case Operation::kPROD: return constant(first * second);
        case Operation::kSUB: return constant(first - second);
        case Operation::kFLOOR_DIV: return constant(first / second);
        default: return nullptr;
      }
    }
    const Expression* declareSizeTensor(int32_t, const Expression&, const Expression&) override { return nullptr; }
    std::vector<std::unique_ptr<Constant>> expressions;
  };
  Made made_;
};

}  // namespace upsnet::tensorrt
