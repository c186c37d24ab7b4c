// ONNX Runtime's operators UsedRows and AllRows. Their outputs' sizes depend on data, so no table declares them.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "onnxruntime/operators.h"

namespace upsnet::onnxruntime {
namespace {

size_t size_of(ElementType type) { return type == kInt64 ? 8 : type == kFloat ? 4 : 2; }

size_t bytes_behind(const Shape& shape, int32_t axis, size_t element) {
  for (; axis < shape.rank; ++axis) element *= shape.d[axis];
  return element;
}

void used_rows(const Context& context, size_t element) {
  Shape shape, counted;
  const auto* rows = static_cast<const char*>(context.input(0, shape));
  const auto* counts = static_cast<const int32_t*>(context.input(1, counted));
  if (shape.rank < 2 || counted.rank != 1 || counted.d[0] != shape.d[0]) {
    throw std::invalid_argument("rows must be [B, K, ...] and counts [B]");
  }
  int64_t used = 1;
  for (int64_t image = 0; image < shape.d[0]; ++image) used = std::max<int64_t>(used, counts[image]);
  const size_t all = bytes_behind(shape, 1, element), row = bytes_behind(shape, 2, element);
  Shape kept = shape;
  kept.d[1] = std::min<int64_t>(used, shape.d[1]);
  auto* out = static_cast<char*>(context.output(0, kept));
  const size_t bytes = kept.d[1] * row;
  for (int64_t image = 0; image < shape.d[0]; ++image) std::memcpy(out + image * bytes, rows + image * all, bytes);
}

void all_rows(const Context& context, size_t element) {
  Shape given, like;
  const auto* results = static_cast<const char*>(context.input(0, given));
  context.input(1, like);
  if (given.rank < 1 || given.rank >= Shape::kMaxRank || like.rank < 2) {
    throw std::invalid_argument("results must be [R, ...] and like [B, K, ...]");
  }
  const int64_t images = like.d[0], used = images > 0 ? given.d[0] / images : 0;
  if (used * images != given.d[0] || used > like.d[1]) {
    throw std::invalid_argument("results must have a row for each of the used rows");
  }
  Shape shape = given;
  shape.rank = given.rank + 1;
  std::copy(given.d + 1, given.d + given.rank, shape.d + 2);
  shape.d[0] = images;
  shape.d[1] = like.d[1];
  auto* out = static_cast<char*>(context.output(0, shape));
  const size_t all = bytes_behind(shape, 1, element), bytes = used * bytes_behind(shape, 2, element);
  for (int64_t image = 0; image < images; ++image) {
    std::memcpy(out + image * all, results + image * bytes, bytes);
    std::memset(out + image * all + bytes, 0, all - bytes);
  }
}

// `type` is that of the first input and of the output.
struct RowsOp final : CustomOp {
  struct Instance {
    const Api& api;
    const RowsOp& op;
  };

  RowsOp(const char* name, ElementType type, ElementType second, void (*run)(const Context&, size_t))
      : CustomOp{}, name(name), type(type), second(second), run(run) {
    version = kCustomOpVersion;
    GetName = [](const CustomOp* op) { return self(op).name; };
    GetExecutionProviderType = [](const CustomOp*) { return OnCpu::kProvider; };
    GetInputTypeCount = [](const CustomOp*) -> size_t { return 2; };
    GetOutputTypeCount = [](const CustomOp*) -> size_t { return 1; };
    GetInputType = [](const CustomOp* op, size_t i) { return i == 0 ? self(op).type : self(op).second; };
    GetOutputType = [](const CustomOp* op, size_t) { return self(op).type; };
    GetInputCharacteristic = [](const CustomOp*, size_t) { return kRequired; };
    GetOutputCharacteristic = [](const CustomOp*, size_t) { return kRequired; };
    GetInputMemoryType = [](const CustomOp*, size_t) { return kDefaultMemory; };
    CreateKernelV2 = [](const CustomOp* op, const Api* api, const KernelInfo*, void** kernel) {
      return guarded(*api, self(op).name, [&] { *kernel = new Instance{*api, self(op)}; });
    };
    KernelComputeV2 = [](void* kernel, KernelContext* session) {
      const auto& [api, op] = *static_cast<const Instance*>(kernel);
      return guarded(api, op.name, [&, &api = api, &op = op] { op.run(Context(api, session), size_of(op.type)); });
    };
    KernelDestroy = [](void* kernel) { delete static_cast<Instance*>(kernel); };
  }

  static const RowsOp& self(const CustomOp* op) { return *static_cast<const RowsOp*>(op); }

  const char* const name;
  const ElementType type, second;
  void (*const run)(const Context&, size_t element);
};

}  // namespace

void add_used_rows(Domain& domain) {
  for (const ElementType type : {kFloat, kInt64}) domain.add_for_cpu(new RowsOp("UsedRows", type, kInt32, used_rows));
  for (const ElementType type : {kFloat, kFloat16, kBFloat16}) {
    domain.add_for_cpu(new RowsOp("AllRows", type, kFloat, all_rows));
  }
}

}  // namespace upsnet::onnxruntime
