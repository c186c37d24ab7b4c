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
#include <cstdio>
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

// Which engines this library runs: see common/kernel_abi.h.
UPSNET_PLUGIN_EXPORT int32_t upsnet_kernel_abi() { return upsnet::kKernelAbi; }

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

// Another library was first. A copy of this one is as good; but engines of another kernel ABI will be refused.
void compare(const IPluginCreatorInterface* rival) {
  Dl_info theirs{}, ours{};
  dladdr(reinterpret_cast<const void*>(&compare), &ours);  // no symbol that another copy may stand in for
  const bool is_found = dladdr(*reinterpret_cast<const void* const*>(rival), &theirs) != 0;  // its virtual table
  void* library = is_found ? dlopen(theirs.dli_fname, RTLD_LAZY | RTLD_NOLOAD) : nullptr;
  const auto number =
      library == nullptr ? nullptr : reinterpret_cast<int32_t (*)()>(dlsym(library, "upsnet_kernel_abi"));
  if (number != nullptr && number() == kKernelAbi) return;
  const std::string line = std::string(ours.dli_fname) + " (kernel ABI " + std::to_string(kKernelAbi) +
                           ") is not used, because " + (is_found ? theirs.dli_fname : "another library") + " (" +
                           (number == nullptr ? "no kernel ABI" : "kernel ABI " + std::to_string(number())) +
                           ") came first: load only the one that belongs to the engine";
  log_error("plugins", "registration", line.c_str());
}

// Every name that is free. An unknown TensorRT gets nothing by itself; its load_library may still ask.
void register_with(const Host& host) {
  if (!host.is_known()) {
    const std::string line =
        host.to_string() +
        " is not one of 10.9 to 11.x, nor TensorRT-RTX 1.7: no plugins for it until load_library asks";
    return log_error("plugins", "registration", line.c_str());
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

__attribute__((constructor)) void register_creators() {
  guarded("plugins", "registration", 0, [] {
    for (const Host& host : Host::all()) register_with(host);
    return 0;
  });
}

std::atomic<void*> logger_finder{nullptr};
thread_local void* loading = nullptr;  // the logger finder of the TensorRT whose load_library runs on this thread

// For load_library: what the caller is to register, none of it registered any more. A name that another library has is
// left to it: the caller would refuse it, and unload this library.
const Creators& hand_over() {
  thread_local Creators creators;
  creators.clear();
  const std::optional<Host> caller = Host::of(loading);
  const std::vector<Host> hosts = caller ? std::vector<Host>{*caller} : Host::all();
  for (IPluginCreatorInterface* creator : all_creators()) {
    bool is_free = true;
    for (const Host& host : hosts) {
      const IPluginCreatorInterface* other = holder(creator, host.creators());
      if (other == creator) host.remove(*creator);
      is_free &= other == creator || other == nullptr;
    }
    if (is_free) creators.push_back(creator);
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
