// What TensorRT's headers and the plugins want of CUDA, for the plugins around emulated kernels (tests).
#pragma once

#include "cuda_runtime.h"

using cudaEvent_t = struct CUevent_st*;
