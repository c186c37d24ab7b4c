// Plays TensorRT to the plugin library, on a machine that has nothing but a compiler (and a GPU): every node in every
// type and layout is built for a profile, kept in an engine, and run on several sizes within the profile, in the very
// workspace that was asked for. Its outputs must be those of the operator called directly, bit for bit, and nothing may
// be written behind the workspace or an output. No arguments; the exit status is 1 where something differs.
//
// With the emulated kernels it runs on the CPU, and under -fsanitize=address every allocation ends where the plugin was
// told that it ends.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <set>
#include <stdexcept>

#include "common/numeric.h"
#include "tensorrt/constants.h"
#include "tensorrt/enqueue_cases.h"

extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count);

namespace upsnet::tensorrt {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::IPluginV3;
using nvinfer1::PluginCapabilityType;
using nvinfer1::PluginField;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;
using nvinfer1::TensorRTPhase;
using Bytes = std::vector<uint8_t>;

#ifdef UPSNET_EMULATED
const Setting kSetting{
    64, 3, 5, 6, {1, 8, 8, 4}, {4, 192, 384, 100}, {{1, 8, 8, 4}, {2, 32, 24, 20}, {1, 36, 28, 9}, {1, 8, 8, 4}}};
#else
// The default profile's maps, up to four photos of 1344 x 1344; photos of 512 x 672 and 800 x 1344. A multiple of 8
// semantic channels: in 16 bits only those may be channels-last.
const Setting kSetting{
    256,
    56,
    80,
    100,
    {1, 8, 8, 16},
    {4, 336, 336, 1000},
    {{1, 128, 168, 300}, {1, 200, 336, 1000}, {1, 8, 8, 16}, {2, 128, 168, 999}, {1, 128, 168, 300}}};
#endif

// Bytes behind an allocation. What an emulated kernel writes behind its workspace must not meet the heap's own before
// it is reported.
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kGuard = 0, kWorkspaceGuard = 0;  // the sanitizer has its own
#elif defined(UPSNET_EMULATED)
constexpr size_t kGuard = 4096, kWorkspaceGuard = size_t{1} << 22;
#else
constexpr size_t kGuard = 4096, kWorkspaceGuard = kGuard;
#endif
constexpr uint8_t kUntouched = 0xff, kGuarded = 0xa5;

void require(bool condition, const std::string& otherwise) {
  if (!condition) throw std::runtime_error(otherwise);
}

void call(int status, const char* what) {
  require(status == cudaSuccess, std::string(what) + ": " + cudaGetErrorString(static_cast<cudaError_t>(status)));
}

// Device memory of this many bytes, and behind it some that nobody may write to.
class Memory {
 public:
  explicit Memory(size_t bytes, size_t guard = kGuard) : bytes_(bytes), guard_(guard) {
    call(cudaMalloc(&data_, bytes + guard), "cudaMalloc");
    clear();
    if (guard > 0) call(cudaMemset(static_cast<uint8_t*>(data_) + bytes, kGuarded, guard), "cudaMemset");
  }
  explicit Memory(const Bytes& content) : Memory(content.size()) {
    call(cudaMemcpy(data_, content.data(), bytes_, cudaMemcpyDefault), "cudaMemcpy");
  }
  Memory(Memory&& other) noexcept : data_(other.data_), bytes_(other.bytes_), guard_(other.guard_) {
    other.data_ = nullptr;
  }
  ~Memory() { cudaFree(data_); }

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  void clear() { call(cudaMemset(data_, kUntouched, bytes_), "cudaMemset"); }
  // Throws where something was written behind it.
  void require_guard(const std::string& name) const {
    Bytes guard(guard_);
    const auto* end = static_cast<const uint8_t*>(data_) + bytes_;
    call(cudaMemcpy(guard.data(), end, guard.size(), cudaMemcpyDefault), name.c_str());
    const auto written = std::find_if(guard.begin(), guard.end(), [](uint8_t byte) { return byte != kGuarded; });
    require(written == guard.end(),
            name + ": byte " + std::to_string(written - guard.begin()) + " behind it is written");
  }
  Bytes content(const std::string& name) const {
    require_guard(name);
    Bytes bytes(bytes_);
    call(cudaMemcpy(bytes.data(), data_, bytes_, cudaMemcpyDefault), name.c_str());
    return bytes;
  }

 private:
  void* data_ = nullptr;
  size_t bytes_, guard_;
};

size_t size_of(DataType type) {
  switch (type) {
    case DataType::kINT64: return 8;
    case DataType::kHALF:
    case DataType::kBF16: return 2;
    default: return 4;
  }
}

int64_t count_of(const Dims& dims) {
  int64_t count = 1;
  for (int32_t axis = 0; axis < dims.nbDims; ++axis) count *= dims.d[axis];
  return count;
}

Bytes encoded(const Values& values, DataType type) {
  Bytes bytes(values.size() * size_of(type));
  for (size_t i = 0; i < values.size(); ++i) {
    uint8_t* const at = &bytes[i * size_of(type)];
    const auto put = [at](auto value) { std::memcpy(at, &value, sizeof value); };
    switch (type) {
      case DataType::kHALF: put(from_float<Half>(float(values[i]))); break;
      case DataType::kBF16: put(from_float<BFloat16>(float(values[i]))); break;
      case DataType::kINT32: put(int32_t(values[i])); break;
      case DataType::kINT64: put(int64_t(values[i])); break;
      default: put(float(values[i]));
    }
  }
  return bytes;
}

const char* name_of(DataType type) {
  return type == DataType::kFLOAT ? "fp32" : type == DataType::kHALF ? "fp16" : "bf16";
}

// A node in a network: its types, its layout, its profile.
class Engine {
 public:
  Engine(nvinfer1::IPluginCreatorV3One& creator, const Case& node, DataType features, bool channels_last)
      : node_(node), features_(features), channels_last_(channels_last), num_inputs_(int32_t(node.inputs.size())) {
    std::vector<PluginField> fields;
    for (const Attribute& attribute : node.attributes) fields.push_back(attribute.field());
    const nvinfer1::PluginFieldCollection given{int32_t(fields.size()), fields.data()};
    built_.reset(creator.createPlugin(node.node, &given, TensorRTPhase::kBUILD));
    require(built_ != nullptr, "createPlugin");
    build();
    const std::unique_ptr<IPluginV3> copy(built_->clone());
    require(copy != nullptr, "clone");
    engine_.reset(creator.createPlugin(node.node, runtime_of(*copy).getFieldsToSerialize(), TensorRTPhase::kRUNTIME));
    require(engine_ != nullptr, "createPlugin for an engine");
    context_.reset(runtime_of(*engine_).attachToContext(nullptr));
    require(context_ != nullptr, "attachToContext");
  }

  // Throws where anything is wrong.
  void run(const Size& size) {
    const std::vector<PluginTensorDesc> tensors = described(shapes(size));
    Run direct{};
    direct.type = features_ == DataType::kFLOAT ? DType::kFloat32 : DType::kFloat16;
    if (features_ == DataType::kBF16) direct.type = DType::kBFloat16;
    direct.layout = channels_last_ ? Layout::kNHWC : Layout::kNCHW;
    std::vector<Memory> inputs, found, expected;
    std::vector<void*> results;
    for (int32_t i = 0; i < int32_t(tensors.size()); ++i) {
      const int64_t count = count_of(tensors[i].dims);
      if (i < num_inputs_) {
        inputs.emplace_back(encoded(node_.inputs[i].values(kSetting, size, count), tensors[i].type));
        direct.inputs.push_back(inputs.back().data());
        direct.shapes.push_back(tensors[i].dims);
      } else {
        found.emplace_back(count * size_of(tensors[i].type));
        results.push_back(found.back().data());
        expected.emplace_back(gives_bytes(i) ? count : found.back().bytes());
        direct.outputs.push_back(expected.back().data());
      }
    }
    enqueue(tensors, direct.inputs, results);
    Memory workspace(node_.workspace_size(direct), kWorkspaceGuard);
    call(node_.launch(direct, workspace.data(), workspace.bytes()), "launch");
    call(cudaDeviceSynchronize(), "launch");
    workspace.require_guard("the operator's workspace");
    for (size_t i = 0; i < found.size(); ++i) {
      const std::string name = "output " + std::to_string(i);
      Bytes wanted = expected[i].content(name);
      require(wanted != Bytes(wanted.size(), kUntouched), name + ": the operator writes nothing");
      if (gives_bytes(num_inputs_ + int32_t(i)))
        wanted = encoded(Values(wanted.begin(), wanted.end()), DataType::kHALF);
      require(found[i].content(name) == wanted, name + " is not the operator's");
    }
  }

 private:
  template <typename Capability>
  static Capability& get(IPluginV3& plugin, PluginCapabilityType type) {
    return *static_cast<Capability*>(plugin.getCapabilityInterface(type));
  }
  static nvinfer1::IPluginV3OneRuntime& runtime_of(IPluginV3& plugin) {
    return get<nvinfer1::IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
  }
  nvinfer1::IPluginV3OneBuild& builder() {
    return get<nvinfer1::IPluginV3OneBuild>(*built_, PluginCapabilityType::kBUILD);
  }
  bool gives_bytes(int32_t tensor) const { return tensor == num_inputs_ && node_.bytes_first; }

  // Formats, profile and workspace.
  void build() {
    const std::vector<Dims> low = shapes(kSetting.smallest), high = shapes(kSetting.largest);
    const std::vector<Dims> usual = shapes(kSetting.runs[0]);
    std::vector<Dims> known = low;
    for (size_t i = 0; i < known.size(); ++i) {
      for (int32_t axis = 0; axis < known[i].nbDims; ++axis) {
        if (low[i].d[axis] != high[i].d[axis]) known[i].d[axis] = -1;
      }
    }
    const std::vector<PluginTensorDesc> tensors = described(known);
    std::vector<DynamicPluginTensorDesc> profile;
    for (size_t i = 0; i < tensors.size(); ++i) profile.push_back({tensors[i], low[i], high[i], usual[i]});
    const DynamicPluginTensorDesc *in = profile.data(), *out = in + num_inputs_;
    const auto num_outputs = int32_t(profile.size()) - num_inputs_;
    for (int32_t i = 0; i < int32_t(profile.size()); ++i) {
      const bool supported = builder().supportsFormatCombination(i, in, num_inputs_, num_outputs);
      require(supported, "supportsFormatCombination: tensor " + std::to_string(i));
    }
    require(builder().configurePlugin(in, num_inputs_, out, num_outputs) == 0, "configurePlugin");
    workspace_ =
        std::make_unique<Memory>(builder().getWorkspaceSize(in, num_inputs_, out, num_outputs), kWorkspaceGuard);
  }

  void enqueue(const std::vector<PluginTensorDesc>& tensors, const std::vector<const void*>& inputs,
               const std::vector<void*>& outputs) {
    const PluginTensorDesc *in = tensors.data(), *out = in + num_inputs_;
    auto& plugin = runtime_of(*context_);
    workspace_->clear();
    require(plugin.onShapeChange(in, num_inputs_, out, int32_t(outputs.size())) == 0, "onShapeChange");
    require(plugin.enqueue(in, out, inputs.data(), outputs.data(), workspace_->data(), nullptr) == 0, "enqueue");
    call(cudaDeviceSynchronize(), "enqueue");
    workspace_->require_guard("the workspace");
  }

  // Of the inputs, then of the outputs.
  std::vector<Dims> shapes(const Size& size) {
    Constants constants;
    std::vector<nvinfer1::DimsExprs> in, out(builder().getNbOutputs());
    std::vector<Dims> all;
    for (const Input& input : node_.inputs) {
      Dims dims{};
      for (const int64_t length : input.shape(kSetting, size)) dims.d[dims.nbDims++] = length;
      all.push_back(dims);
      in.push_back(constants.of(dims));
    }
    const int32_t status =
        builder().getOutputShapes(in.data(), num_inputs_, nullptr, 0, out.data(), int32_t(out.size()), constants);
    require(status == 0, "getOutputShapes");
    for (const nvinfer1::DimsExprs& expressions : out) all.push_back(Constants::dims(expressions));
    return all;
  }

  std::vector<PluginTensorDesc> described(const std::vector<Dims>& shapes) {
    std::vector<DataType> in, out(shapes.size() - num_inputs_);
    for (const Input& input : node_.inputs) in.push_back(input.type == DataType::kHALF ? features_ : input.type);
    const int32_t status = builder().getOutputDataTypes(out.data(), int32_t(out.size()), in.data(), num_inputs_);
    require(status == 0, "getOutputDataTypes");
    std::vector<PluginTensorDesc> tensors;
    for (size_t i = 0; i < shapes.size(); ++i) {
      const bool is_input = i < node_.inputs.size();
      const bool is_image = is_input ? node_.inputs[i].may_be_channels_last : shapes[i].nbDims == 4;
      PluginTensorDesc tensor{shapes[i], is_input ? in[i] : out[i - num_inputs_], TensorFormat::kLINEAR, 1};
      if (is_image && channels_last_) {
        tensor.format = tensor.type == DataType::kFLOAT ? TensorFormat::kHWC : TensorFormat::kHWC8;
      }
      tensors.push_back(tensor);
    }
    return tensors;
  }

  const Case& node_;
  const DataType features_;
  const bool channels_last_;
  const int32_t num_inputs_;
  std::unique_ptr<IPluginV3> built_, engine_, context_;
  std::unique_ptr<Memory> workspace_;
};

// How many runs; failures counts those that went wrong.
int check(nvinfer1::IPluginCreatorV3One& creator, const Case& node, DataType features, bool channels_last,
          int& failures) {
  const bool has_features = node.inputs[0].type == DataType::kHALF;
  const std::string layout = channels_last ? " channels-last" : "";
  const std::string merge = node.attributes.back().name == "merge" ? " " + node.attributes.back().text : "";
  const std::string name = node.node + merge + (has_features ? " " + std::string(name_of(features)) + layout : "");
  int runs = 0;
  try {
    Engine engine(creator, node, features, channels_last);
    for (const Size& size : kSetting.runs) {
      ++runs;
      engine.run(size);
    }
    std::printf("ok      %s, %d sizes\n", name.c_str(), runs);
  } catch (const std::exception& error) {
    ++failures;
    std::printf("FAILED  %s, size %d: %s\n", name.c_str(), runs, error.what());
  }
  std::fflush(stdout);
  return runs;
}

int check_all() {
  int32_t count = 0;
  const auto* creators = getCreators(count);
  int runs = 0, failures = 0;
  std::set<std::string> nodes;
  for (const Case& node : all_cases(kSetting)) {
    for (int32_t i = 0; i < count; ++i) {
      auto& creator = *static_cast<nvinfer1::IPluginCreatorV3One*>(creators[i]);
      if (std::strcmp(creator.getPluginName(), node.node) != 0) continue;
      nodes.insert(node.node);
      const bool has_features = node.inputs[0].type == DataType::kHALF;
      for (const DataType type : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16}) {
        if (!has_features && type != DataType::kFLOAT) continue;
        runs += check(creator, node, type, false, failures);
        if (has_features) runs += check(creator, node, type, true, failures);
      }
    }
  }
  failures += int32_t(nodes.size()) != count;
  std::printf("enqueue: %d of %d nodes, %d runs, %d failures\n", int(nodes.size()), count, runs, failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace upsnet::tensorrt

int main() { return upsnet::tensorrt::check_all(); }
