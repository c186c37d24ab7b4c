// How TensorRT comes to know the plugins, and the plugins TensorRT's logger.
//
// Two ways in, and both may be taken by one process:
//   a plain dlopen (Triton, trtexec and polygraphy --plugins): a constructor registers by itself, with the TensorRT in
//   the process. Polygraphy loads plugins before TensorRT: then with the one that the dynamic loader finds, as if the
//   library were linked against it; where it finds none, a line says so; registry.load_library(path), which runs that
//   constructor too, and then asks getCreators() for what to register. Registering a name twice makes it fail, and
//   unload what the registry still points to. So getCreators() first takes back what the constructor did, and the
//   library never leaves the process (-z nodelete).
//
// The library links against no TensorRT and works with every one from 10.9 to 11.x and TensorRT-RTX 1.7, whichever of
// their headers it was compiled with: the plugins' own interfaces have not changed in between. Three others have, and
// a call through a class of the wrong header would run some other function: IPluginRegistry lost its methods for V2
// plugins in 11, ILogger and ILoggerFinder became versioned interfaces. Their methods are called by their place in the
// virtual table, chosen by the version of the TensorRT that the object is from.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <tuple>
#include <vector>

#include "tensorrt/creators.h"
#include "tensorrt/log.h"

namespace upsnet::tensorrt {
namespace {

using nvinfer1::IPluginCreatorInterface;

// Places in the virtual tables (Itanium C++ ABI: order of declaration, a virtual destructor takes two).
struct Layout {
  int register_creator;    // bool IPluginRegistry::registerCreator(IPluginCreatorInterface&, const char* namespace)
  int get_all_creators;    // IPluginCreatorInterface* const* IPluginRegistry::getAllCreators(int32_t* count) const
  int deregister_creator;  // bool IPluginRegistry::deregisterCreator(const IPluginCreatorInterface&)
  int log;                 // void ILogger::log(Severity, const char*)
  int find_logger;         // ILogger* ILoggerFinder::findLogger()
};
constexpr Layout kLayout10{12, 13, 15, 0, 0}, kLayout11{8, 9, 11, 4, 4};

const Layout* layout_of_version(int32_t version) {
  if (version >= 120000) return nullptr;  // nobody knows
  if (version >= 110000) return &kLayout11;
  if (version >= 100900) return &kLayout10;
  return version >= 10700 && version < 20000 ? &kLayout11 : nullptr;  // TensorRT-RTX counts 1.7.1 as 10701
}

template <typename Result, typename... Arguments>
Result call_virtual(void* object, int place, Arguments... arguments) {
  using Method = Result (*)(void*, Arguments...);
  return reinterpret_cast<Method>((*static_cast<void***>(object))[place])(object, arguments...);
}

template <typename Function>
Function* find(void* library, const char* name) {
  return reinterpret_cast<Function*>(dlsym(library, name));
}

const Layout* layout_in(void* library) {
  const auto version = find<int32_t()>(library, "getInferLibVersion");
  return version == nullptr ? nullptr : layout_of_version(version());
}

// The layout of an object that TensorRT made: that of the library which holds its virtual table.
const Layout* layout_of(void* object) {
  Dl_info info{};
  if (dladdr(*static_cast<void**>(object), &info) == 0 || info.dli_fname == nullptr) return nullptr;
  void* library = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) return nullptr;
  const Layout* layout = layout_in(library);
  dlclose(library);
  return layout;
}

// TensorRT by name; flags: RTLD_NOLOAD for one that is in the process already, else 0. The reference that dlopen counts
// is kept: whoever registered must not lose the registry.
void* open_tensorrt(int flags) {
  for (const char* name : {"libnvinfer.so.11", "libnvinfer.so.10", "libtensorrt_rtx.so.1", "libnvinfer_lean.so.11",
                           "libnvinfer_lean.so.10"}) {
    void* library = dlopen(name, RTLD_LAZY | flags);
    if (library != nullptr && dlsym(library, "getPluginRegistry") != nullptr) return library;
  }
  return nullptr;
}

// The TensorRT of this process. Looked for by symbol (the application links against it), then by name (Python loads it
// with its symbols hidden).
void* find_tensorrt() {
  if (dlsym(RTLD_DEFAULT, "getPluginRegistry") != nullptr) return RTLD_DEFAULT;
  return open_tensorrt(RTLD_NOLOAD);
}

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

// The process's registry, as far as this library needs it.
class Registry {
 public:
  // No TensorRT, or one that is not known: an empty registry that takes nothing.
  Registry() {
    void* tensorrt = find_tensorrt();
    const auto get_registry = find<void*()>(tensorrt, "getPluginRegistry");
    if (get_registry == nullptr) return;
    layout_ = layout_in(tensorrt);
    if (layout_ != nullptr) registry_ = get_registry();
    if (layout_ == nullptr) log_error("plugins", "registration", "unknown version of TensorRT: use load_library()");
  }

  void add(IPluginCreatorInterface* creator) {
    if (registry_ != nullptr) call_virtual<bool>(registry_, layout_->register_creator, creator, "");
  }
  void remove(IPluginCreatorInterface* creator) {
    if (registry_ != nullptr) call_virtual<bool>(registry_, layout_->deregister_creator, creator);
  }
  // Who has the creator's name: this very creator, another copy of this library, nobody (null). By the list, as asking
  // for a name that nobody has makes TensorRT log an error.
  IPluginCreatorInterface* holder(const IPluginCreatorInterface* creator) {
    if (registry_ == nullptr) return nullptr;
    int32_t count = 0;
    const auto* held = call_virtual<IPluginCreatorInterface* const*>(registry_, layout_->get_all_creators, &count);
    const auto* found = std::find_if(held, held + count, [&](const IPluginCreatorInterface* other) {
      return std::strcmp(other->getInterfaceInfo().kind, creator->getInterfaceInfo().kind) == 0 &&
             identity(other) == identity(creator);
    });
    return found == held + count ? nullptr : *found;
  }

 private:
  void* registry_ = nullptr;
  const Layout* layout_ = nullptr;
};

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

__attribute__((constructor)) void register_creators() {
  guarded("plugins", "registration", 0, [] {
    const bool is_there = find<void*()>(find_tensorrt(), "getPluginRegistry") != nullptr;
    if (!is_there && open_tensorrt(0) == nullptr) {
      log_error("plugins", "registration",
                "no TensorRT is in this process, and the dynamic loader finds none: load TensorRT first, or put its "
                "folder on LD_LIBRARY_PATH");
      return 0;
    }
    Registry registry;
    for (IPluginCreatorInterface* creator : all_creators()) {
      if (registry.holder(creator) == nullptr) registry.add(creator);
    }
    return 0;
  });
}

// For load_library: what the caller is to register, none of it registered any more.
const std::vector<IPluginCreatorInterface*>& hand_over() {
  static std::vector<IPluginCreatorInterface*> creators;
  creators.clear();
  Registry registry;
  for (IPluginCreatorInterface* creator : all_creators()) {
    const IPluginCreatorInterface* holder = registry.holder(creator);
    if (holder == creator) registry.remove(creator);
    if (holder == creator || holder == nullptr) creators.push_back(creator);
  }
  return creators;
}

// The logger of the engine or builder that runs on this thread; else the process's; else none.
bool log_to_tensorrt(const char* line) {
  void* logger = nullptr;
  const Layout* layout = nullptr;
  if (void* finder = logger_finder.load(); finder != nullptr) {
    layout = layout_of(finder);
    if (layout != nullptr) logger = call_virtual<void*>(finder, layout->find_logger);
  }
  if (logger == nullptr) {
    void* tensorrt = find_tensorrt();
    const auto get_logger = find<void*()>(tensorrt, "getLogger");
    const bool is_tensorrt = find<void*()>(tensorrt, "getPluginRegistry") != nullptr;
    layout = is_tensorrt ? layout_in(tensorrt) : nullptr;
    if (layout != nullptr && get_logger != nullptr) logger = get_logger();
  }
  if (logger == nullptr) return false;
  call_virtual<void>(logger, layout->log, nvinfer1::ILogger::Severity::kERROR, line);
  return true;
}

}  // namespace

void log_error(const char* plugin, const char* method, const char* what) noexcept {
  try {
    const std::string line = std::string("upsnet ") + plugin + ", " + method + ": " + what;
    if (!log_to_tensorrt(line.c_str())) std::fprintf(stderr, "%s\n", line.c_str());
  } catch (...) { std::fputs(what, stderr); }
}

}  // namespace upsnet::tensorrt

#define UPSNET_PLUGIN_EXPORT extern "C" __attribute__((visibility("default")))

UPSNET_PLUGIN_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  upsnet::tensorrt::logger_finder.store(finder);
}

UPSNET_PLUGIN_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  using Creators = nvinfer1::IPluginCreatorInterface* const*;
  count = 0;
  return upsnet::tensorrt::guarded("plugins", "getCreators", Creators{}, [&]() -> Creators {
    const auto& creators = upsnet::tensorrt::hand_over();
    count = static_cast<int32_t>(creators.size());
    return creators.data();
  });
}
