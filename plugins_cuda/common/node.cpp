#include "common/node.h"

#include <algorithm>
#include <limits>
#include <string_view>

namespace upsnet {
namespace {

// What the letters of the patterns stand for. A handful: looked through in a row, on every call.
class Sizes {
 public:
  bool fits(const Pattern::Axis& axis, int64_t size) {
    if (size > std::numeric_limits<int32_t>::max()) return false;  // the kernels' parameters hold 32 bits
    if (size < 0) return true;
    if (axis.number >= 0) return size == axis.number;
    const auto known = std::find_if(begin(), end(), [&](const Size& each) { return each.word == axis.word; });
    if (known != end()) return known->size == size;
    if (count_ < kMost) sizes_[count_++] = {axis.word, size};
    return true;
  }
  struct Size {
    std::string_view word;
    int64_t size;
  };
  const Size* begin() const { return sizes_; }
  const Size* end() const { return sizes_ + count_; }

 private:
  static constexpr int32_t kMost = 32;
  Size sizes_[kMost];
  int32_t count_ = 0;
};

}  // namespace

bool is_known(const Shape& shape) {
  return std::all_of(shape.d, shape.d + shape.rank, [](int64_t size) { return size >= 0; });
}

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (int32_t axis = 0; axis < shape.rank; ++axis) text += (axis ? " " : "") + std::to_string(shape.d[axis]);
  return text + "]";
}

void check_shapes(const Tensor* tensors, const Shape* shapes, int32_t count) {
  Sizes known;
  for (int32_t i = 0; i < count; ++i) {
    const Shape& shape = shapes[i];
    const Pattern& pattern = tensors[i].shape;
    bool all_fit = pattern.rank == shape.rank;
    for (int32_t axis = 0; axis < std::min(pattern.rank, shape.rank); ++axis) {
      all_fit &= known.fits(pattern.axes[axis], shape.d[axis]);
    }
    if (all_fit) continue;
    std::string message = tensors[i].name + (" is " + to_string(shape)) + ", not [" + pattern.text + "]";
    for (const auto& [word, size] : known) message += " " + std::string(word) + "=" + std::to_string(size);
    throw std::invalid_argument(message);
  }
}

std::string sizes_of(const Tensor* tensors, const Argument* arguments, int32_t count) {
  std::string text;
  for (int32_t i = 0; i < count; ++i) {
    text += (i ? ", " : "") + std::string(tensors[i].name) + " " + to_string(arguments[i].shape);
  }
  return text;
}

}  // namespace upsnet
