// An engine keeps the number of the library that it was built with.
#pragma once

#include "common/kernel_abi.h"
#include "tensorrt/attributes.h"

namespace upsnet::tensorrt {

inline constexpr const char* kKernelAbiField = "kernel_abi";  // among a plugin's attributes in an engine

// std::invalid_argument for the fields of an engine of another number.
void check_kernel_abi(const FieldReader& fields, nvinfer1::TensorRTPhase phase);

}  // namespace upsnet::tensorrt
