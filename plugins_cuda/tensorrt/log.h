// Errors of the plugins: one line through TensorRT's logger, or on stderr where there is none.
#pragma once

#include <exception>

namespace upsnet::tensorrt {

void log_error(const char* plugin, const char* method, const char* what) noexcept;

// body(), for a method that TensorRT calls: an exception becomes one logged line and the result `failure`. Nothing is
// ever thrown into TensorRT.
template <typename Result, typename Body>
Result guarded(const char* plugin, const char* method, Result failure, Body body) noexcept {
  try {
    return body();
  } catch (const std::exception& error) { log_error(plugin, method, error.what()); } catch (...) {
    log_error(plugin, method, "unknown exception");
  }
  return failure;
}

}  // namespace upsnet::tensorrt
