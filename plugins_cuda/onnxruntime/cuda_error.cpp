#include <cuda_runtime_api.h>

#include "onnxruntime/on_cuda.h"

namespace upsnet::onnxruntime {

const char* cuda_error(int status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); }

}  // namespace upsnet::onnxruntime
