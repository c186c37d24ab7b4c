// RegisterCustomOps, the function that ONNX Runtime calls when this library is registered with a session's options.
#include <map>
#include <mutex>

#include "common/exports.h"
#include "common/kernel_abi.h"
#include "onnxruntime/operators.h"

namespace upsnet::onnxruntime {
namespace {

// One domain for each ONNX Runtime in the process. Sessions keep pointers into it for as long as they live: it is never
// destroyed.
CustomOpDomain* domain_of(const Api& api) {
  static std::mutex mutex;
  static auto* const domains = new std::map<const Api*, CustomOpDomain*>;
  const std::lock_guard lock(mutex);
  CustomOpDomain*& domain = (*domains)[&api];
  if (domain == nullptr) {
    CustomOpDomain* made = nullptr;
    check(api.CreateCustomOpDomain("upsnet", &made));
    Domain all(api, made);
    add_roi_align_fpn(all);
    add_nms(all);
    add_deform_conv(all);
    add_panoptic_fusion(all);
    add_best_anchors(all);
    add_used_rows(all);
    domain = made;
  }
  return domain;
}

}  // namespace
}  // namespace upsnet::onnxruntime

// Which library this is, for programs that are handed one: see common/kernel_abi.h.
UPSNET_EXPORT int32_t upsnet_kernel_abi() { return upsnet::kKernelAbi; }

// Null, or an error that tells why these operators cannot be used.
UPSNET_EXPORT upsnet::onnxruntime::Status* RegisterCustomOps(upsnet::onnxruntime::SessionOptions* options,
                                                             const upsnet::onnxruntime::ApiBase* base) {
  using namespace upsnet::onnxruntime;
  const Api* const api = base->GetApi(kApiVersion);
  if (api == nullptr) {
    const std::string why = std::string("ONNX Runtime ") + base->GetVersionString() + " is too old; they need 1.18";
    return base->GetApi(1)->CreateStatus(kFail, ("upsnet's operators: " + why).c_str());
  }
  return guarded(*api, "RegisterCustomOps", [&] { check(api->AddCustomOpDomain(options, domain_of(*api))); });
}
