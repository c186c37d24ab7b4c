// What the PyTorch binding (../library.py) asks CUDA's runtime, which is linked into the library.
#include <cuda_runtime_api.h>

#include "common/exports.h"

// Whether this runtime works with the machine's driver: cudaSuccess, else why not. The versions (13020 is 13.2) of the
// runtime, and of the newest that the driver serves; 0: there is no driver.
UPSNET_EXPORT int upsnet_cuda_status(int* runtime, int* driver) {
  *runtime = *driver = 0;
  int devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  static_cast<void>(cudaRuntimeGetVersion(runtime));
  static_cast<void>(cudaDriverGetVersion(driver));
  return status;
}

UPSNET_EXPORT const char* upsnet_error_string(int status) {
  return cudaGetErrorString(static_cast<cudaError_t>(status));
}
