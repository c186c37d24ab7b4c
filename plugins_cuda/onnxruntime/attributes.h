// A node's attributes, from ONNX Runtime.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "onnxruntime/abi.h"
#include "onnxruntime/context.h"

namespace upsnet::onnxruntime {

class AttributeReader {
 public:
  AttributeReader(const Api& api, const KernelInfo* info) : api_(api), info_(info) {}

  // std::invalid_argument when the attribute is missing or is not what `value` is.
  template <typename T>
  void required(const char* name, T& value) const {
    if (!read(name, value)) refuse(name, exists(name) ? "is of another type" : "is missing");
  }
  // The same, but a missing attribute leaves `value` as it is.
  template <typename T>
  void optional(const char* name, T& value) const {
    if (!read(name, value) && exists(name)) refuse(name, "is of another type");
  }

 private:
  [[noreturn]] static void refuse(const char* name, const std::string& why) {
    throw std::invalid_argument("attribute " + std::string(name) + " " + why);
  }

  // Whether it worked.
  bool done(Status* status) const {
    if (status != nullptr) api_.ReleaseStatus(status);
    return status == nullptr;
  }

  // Whether it is there, as anything that an attribute of these nodes may be.
  bool exists(const char* name) const {
    int64_t integer;
    float number;
    std::string text;
    std::vector<int64_t> integers;
    size_t count = 0;
    return done(api_.KernelInfoGetAttribute_int64(info_, name, &integer)) ||
           done(api_.KernelInfoGetAttribute_float(info_, name, &number)) || read(name, text) || read(name, integers) ||
           done(api_.KernelInfoGetAttributeArray_float(info_, name, nullptr, &count));
  }

  bool read(const char* name, float& value) const {
    return done(api_.KernelInfoGetAttribute_float(info_, name, &value));
  }
  bool read(const char* name, int32_t& value) const {
    int64_t wide = 0;
    if (!done(api_.KernelInfoGetAttribute_int64(info_, name, &wide))) return false;
    value = narrowed(name, wide);
    return true;
  }
  bool read(const char* name, std::string& value) const {
    size_t size = 0;  // with the final zero
    if (!done(api_.KernelInfoGetAttribute_string(info_, name, nullptr, &size))) return false;
    std::string text(size, '\0');
    check(api_.KernelInfoGetAttribute_string(info_, name, text.data(), &size));
    value.assign(text.c_str());
    return true;
  }
  bool read(const char* name, std::vector<int64_t>& values) const {
    size_t count = 0;
    if (!done(api_.KernelInfoGetAttributeArray_int64(info_, name, nullptr, &count))) return false;
    values.resize(count);
    return count == 0 || done(api_.KernelInfoGetAttributeArray_int64(info_, name, values.data(), &count));
  }
  template <size_t N>
  bool read(const char* name, std::array<int32_t, N>& values) const {
    std::vector<int64_t> wide;
    if (!read(name, wide)) return false;
    if (wide.size() != N) {
      refuse(name, "holds " + std::to_string(wide.size()) + " integers, not " + std::to_string(N));
    }
    for (size_t i = 0; i < N; ++i) values[i] = narrowed(name, wide[i]);
    return true;
  }

  static int32_t narrowed(const char* name, int64_t value) {
    if (value < std::numeric_limits<int32_t>::min() || value > std::numeric_limits<int32_t>::max()) {
      refuse(name, "is out of range: " + std::to_string(value));
    }
    return static_cast<int32_t>(value);
  }

  const Api& api_;
  const KernelInfo* const info_;
};

}  // namespace upsnet::onnxruntime
