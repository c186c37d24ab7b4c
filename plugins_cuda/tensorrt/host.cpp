#include "tensorrt/host.h"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstring>

#include "tensorrt/abi/process.h"

namespace upsnet::tensorrt {
namespace {

using nvinfer1::IPluginCreatorInterface;

// What every TensorRT exports.
constexpr const char* kRegistry = "getPluginRegistry";
constexpr const char* kVersion = "getInferLibVersion";
constexpr const char* kLogger = "getLogger";

template <typename Function>
Function* find(void* library, const char* name) {
  return reinterpret_cast<Function*>(dlsym(library, name));
}

// Files of this process that may be TensorRT's: libnvinfer.so.11, libnvinfer_lean.so.10, libnvinfer_dispatch.so.11,
// libtensorrt_rtx.so.1, ..., whatever their version.
std::vector<std::string> loaded_files() {
  std::vector<std::string> files;
  const auto visit = [](dl_phdr_info* info, size_t, void* found) {
    const std::string file = info->dlpi_name;
    const size_t name = file.rfind('/') + 1;  // 0 where there is no folder
    for (const char* start : {"libnvinfer", "libtensorrt_rtx"}) {
      if (file.compare(name, std::strlen(start), start) == 0) {
        static_cast<std::vector<std::string>*>(found)->push_back(file);
      }
    }
    return 0;
  };
  dl_iterate_phdr(visit, &files);
  return files;
}

}  // namespace

std::vector<Host> Host::all() {
  std::vector<Host> hosts;
  const auto add = [&](void* library) {
    const std::optional<Host> host = in(library);
    const auto is_it = [&](const Host& other) { return host && other.registry_ == host->registry_; };
    if (host && std::none_of(hosts.begin(), hosts.end(), is_it)) hosts.push_back(*host);
  };
  add(RTLD_DEFAULT);  // of the program itself, or that it is linked against, whatever the file's name
  // The reference that dlopen counts is kept: whoever registered must not lose the registry.
  for (const std::string& file : loaded_files()) {
    if (void* library = dlopen(file.c_str(), RTLD_LAZY | RTLD_NOLOAD)) add(library);
  }
  return hosts;
}

std::optional<Host> Host::of(const void* object) {
  Dl_info info{};  // of its virtual table
  if (object == nullptr || dladdr(*static_cast<const void* const*>(object), &info) == 0) return std::nullopt;
  void* library = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  return library == nullptr ? std::nullopt : in(library);
}

std::optional<Host> Host::in(void* library) {
  const auto registry = find<void*()>(library, kRegistry);
  const auto version = find<int32_t()>(library, kVersion);
  if (registry == nullptr || version == nullptr) return std::nullopt;
  return Host(library, registry(), version());
}

Host::Host(void* library, void* registry, int32_t version)
    : library_(library), registry_(registry), major_(version / 10000), minor_(version / 100 % 100) {
  if (version < 10000) {  // 8601 is TensorRT 8.6.1
    major_ = version / 1000;
    minor_ = version / 100 % 10;
  }
  if (major_ == 10 && minor_ >= 9) layout_ = Layout::k10;
  if (major_ == 11 || (major_ == 1 && minor_ >= 7)) layout_ = Layout::k11;  // 1: TensorRT-RTX
}

std::string Host::to_string() const {
  Dl_info info{};
  const bool found = dladdr(dlsym(library_, kRegistry), &info) != 0;
  return "TensorRT " + std::to_string(major_) + "." + std::to_string(minor_) + " (" + (found ? info.dli_fname : "?") +
         ")";
}

template <typename V10, typename V11, typename Visit>
auto Host::as(void* object, Visit visit) const {
  return layout_ == Layout::k10 ? visit(*static_cast<V10*>(object)) : visit(*static_cast<V11*>(object));
}

std::vector<IPluginCreatorInterface*> Host::creators() const {
  if (!is_known()) return {};
  int32_t count = 0;
  IPluginCreatorInterface* const* held = as<v10::IPluginRegistry, v11::IPluginRegistry>(
      registry_, [&](const auto& registry) { return registry.getAllCreators(&count); });
  return {held, held + count};
}

void Host::add(IPluginCreatorInterface& creator) const {
  if (!is_known()) return;
  as<v10::IPluginRegistry, v11::IPluginRegistry>(registry_,
                                                 [&](auto& registry) { return registry.registerCreator(creator, ""); });
}

void Host::remove(const IPluginCreatorInterface& creator) const {
  if (!is_known()) return;
  as<v10::IPluginRegistry, v11::IPluginRegistry>(registry_,
                                                 [&](auto& registry) { return registry.deregisterCreator(creator); });
}

void* Host::logger(void* finder) const {
  if (finder != nullptr) {
    return as<v10::ILoggerFinder, v11::ILoggerFinder>(finder, [](auto& found) -> void* { return found.findLogger(); });
  }
  const auto get_logger = find<void*()>(library_, kLogger);
  return get_logger == nullptr ? nullptr : get_logger();
}

bool Host::log(void* finder, const char* line) const {
  void* logger = is_known() ? this->logger(finder) : nullptr;
  if (logger == nullptr) return false;
  return as<v10::ILogger, v11::ILogger>(logger, [&](auto& found) {
    found.log(Severity::kERROR, line);
    return true;
  });
}

}  // namespace upsnet::tensorrt
