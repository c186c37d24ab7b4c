// What an engine relies on, and a program that loads a library of operators: one of the same number.
#pragma once

#include <cstdint>

namespace upsnet {

// Raise it when an engine that was built before must not run with the library any more: an attribute, a tensor's type
// or layout, or the meaning of one has changed, or a workspace has grown (its size lies in the engine).
// test_kernel_abi.py notices most of it.
//   1: engines without a number; deform_conv's workspace could be too small
//   2: the workspace is enough for every size within the profile
//   3: panoptic_fusion's workspace has grown where things are few, or the map is small
#ifndef UPSNET_KERNEL_ABI  // tests build a second library
#define UPSNET_KERNEL_ABI 3
#endif
inline constexpr int32_t kKernelAbi = UPSNET_KERNEL_ABI;

}  // namespace upsnet
