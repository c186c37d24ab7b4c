// How TensorRT comes to know the plugins, and the plugins TensorRT's logger.
//
// Two ways in, and both may be taken by one process:
//   a plain dlopen (Triton, trtexec): a constructor registers with every TensorRT that is in the process. Where there
//   is none it does nothing and says nothing: the library may be in every process (LD_PRELOAD);
//   registry.load_library(path), which runs that constructor too, and then asks getCreators() for what to register.
//   Registering a name twice makes it fail, and unload what the registry still points to. So getCreators() first takes
//   back what the constructor did, and the library never leaves the process (-z nodelete).
// Creators are never destroyed, and nothing runs when the process ends.
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "tensorrt/creators.h"
#include "tensorrt/host.h"
#include "tensorrt/kernel_abi.h"
#include "tensorrt/log.h"

#define UPSNET_PLUGIN_EXPORT extern "C" __attribute__((visibility("default")))

// Which engines this library runs: see tensorrt/kernel_abi.h.
UPSNET_PLUGIN_EXPORT int32_t upsnet_kernel_abi() { return upsnet::tensorrt::kKernelAbi; }

namespace upsnet::tensorrt {
namespace {

using nvinfer1::IPluginCreatorInterface;
using Creators = std::vector<IPluginCreatorInterface*>;

const std::array<IPluginCreatorInterface*, 6>& all_creators() {
  static const std::array<IPluginCreatorInterface*, 6> creators{
      roi_align_fpn_creator(),         padded_nms_creator(),     padded_batched_nms_creator(), deform_conv_creator(),
      modulated_deform_conv_creator(), panoptic_fusion_creator()};
  return creators;
}

std::tuple<std::string, std::string, std::string> identity(const IPluginCreatorInterface* creator) {
  const auto* named = static_cast<const nvinfer1::IPluginCreatorV3One*>(creator);
  return {named->getPluginName(), named->getPluginVersion(), named->getPluginNamespace()};
}

// Who of these has the creator's name: this very creator, that of another library, nobody (null). By the list, as
// asking a registry for a name that nobody has makes TensorRT log an error.
IPluginCreatorInterface* holder(const IPluginCreatorInterface* creator, const Creators& held) {
  const auto found = std::find_if(held.begin(), held.end(), [&](const IPluginCreatorInterface* other) {
    return std::strcmp(other->getInterfaceInfo().kind, creator->getInterfaceInfo().kind) == 0 &&
           identity(other) == identity(creator);
  });
  return found == held.end() ? nullptr : *found;
}

// Says so when engines of this library meet the plugins of another one that is no copy of it.
void compare(const IPluginCreatorInterface* rival) {
  Dl_info theirs{}, ours{};
  dladdr(*reinterpret_cast<const void* const*>(rival), &theirs);  // their virtual table
  dladdr(reinterpret_cast<const void*>(&upsnet_kernel_abi), &ours);
  void* library = theirs.dli_fname == nullptr ? nullptr : dlopen(theirs.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  const auto kernel_abi =
      library == nullptr ? nullptr : reinterpret_cast<int32_t (*)()>(dlsym(library, "upsnet_kernel_abi"));
  if (kernel_abi != nullptr && kernel_abi() == kKernelAbi) return;
  const std::string number =
      kernel_abi == nullptr ? "no kernel ABI number" : "kernel ABI " + std::to_string(kernel_abi());
  const std::string line = std::string(ours.dli_fname) + " (kernel ABI " + std::to_string(kKernelAbi) +
                           ") is not used: " + (theirs.dli_fname == nullptr ? "another library" : theirs.dli_fname) +
                           " (" + number + ") was loaded first and has the plugins' names; load one of them alone";
  log_error("plugins", "registration", line.c_str());
}

__attribute__((constructor)) void register_creators() {
  guarded("plugins", "registration", 0, [] {
    for (const Host& host : Host::all()) {
      if (!host.is_known()) {
        const std::string line =
            host.to_string() + " is not known (10.9 to 11.x and TensorRT-RTX 1.7 on are): use load_library()";
        log_error("plugins", "registration", line.c_str());
      }
      const Creators held = host.creators();
      const IPluginCreatorInterface* rival = nullptr;
      for (IPluginCreatorInterface* creator : all_creators()) {
        const IPluginCreatorInterface* other = holder(creator, held);
        if (other == nullptr) host.add(*creator);
        if (other != nullptr && other != creator) rival = other;
      }
      if (rival != nullptr) compare(rival);
    }
    return 0;
  });
}

std::atomic<void*> logger_finder{nullptr};
thread_local void* loading = nullptr;  // the logger finder of the TensorRT whose load_library runs on this thread

// For load_library: what the caller is to register, none of it registered any more.
const Creators& hand_over() {
  thread_local Creators creators;
  const std::optional<Host> caller = Host::of(loading);
  const std::vector<Host> hosts = caller ? std::vector<Host>{*caller} : Host::all();
  creators.assign(all_creators().begin(), all_creators().end());
  for (const Host& host : hosts) {
    const Creators held = host.creators();
    const auto is_taken = [&](const IPluginCreatorInterface* creator) {
      const IPluginCreatorInterface* other = holder(creator, held);
      if (other == creator) host.remove(*creator);
      return other != nullptr && other != creator;
    };
    creators.erase(std::remove_if(creators.begin(), creators.end(), is_taken), creators.end());
  }
  return creators;
}

bool log_to_tensorrt(const char* line) {
  void* finder = logger_finder.load();
  if (const std::optional<Host> host = Host::of(finder); host && host->log(finder, line)) return true;
  const std::vector<Host> hosts = Host::all();
  return std::any_of(hosts.begin(), hosts.end(), [&](const Host& host) { return host.log(nullptr, line); });
}

}  // namespace

void log_error(const char* plugin, const char* method, const char* what) noexcept {
  try {
    const std::string line = std::string("upsnet ") + plugin + ", " + method + ": " + what;
    if (!log_to_tensorrt(line.c_str())) std::fprintf(stderr, "%s\n", line.c_str());
  } catch (...) { std::fputs(what, stderr); }
}

}  // namespace upsnet::tensorrt

UPSNET_PLUGIN_EXPORT void setLoggerFinder(void* finder) {
  upsnet::tensorrt::logger_finder.store(finder);
  upsnet::tensorrt::loading = finder;
}

UPSNET_PLUGIN_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  using Pointers = nvinfer1::IPluginCreatorInterface* const*;
  count = 0;
  return upsnet::tensorrt::guarded("plugins", "getCreators", Pointers{}, [&]() -> Pointers {
    const auto& creators = upsnet::tensorrt::hand_over();
    count = static_cast<int32_t>(creators.size());
    return creators.data();
  });
}
