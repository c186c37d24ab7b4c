"""The fake TensorRT's builder's side."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any

import onnx

from tests.upsnet.tensorrt.fake_plan import Layer, Plan, Tensor, is_plugin, network_layers, tensor

LEAST_WORKSPACE = 2**20  # bytes


class Strict:
    """No attribute that its class does not name, as with pybind11."""

    _trt: Any  # the module

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and not hasattr(type(self), name):
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        object.__setattr__(self, name, value)


class Dims:
    """Compares with tuples and lists alone, as the real one does."""

    def __init__(self, shape: Any = ()) -> None:
        self._shape = tuple(int(each) for each in shape)

    def __len__(self) -> int:
        return len(self._shape)

    def __getitem__(self, index: Any) -> Any:
        return self._shape[index]

    def __iter__(self) -> Any:
        return iter(self._shape)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, tuple | list):
            raise TypeError("__eq__(): incompatible function arguments.")
        return self._shape == tuple(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self._shape)


class IHostMemory(bytes):
    """A buffer; its bytes are `bytes(it)`."""

    @property
    def nbytes(self) -> int:
        return len(self)


class ITensor(Strict):
    name = property(lambda self: self._of.name)
    dtype = property(lambda self: self._trt.DataType[self._of.dtype])
    is_network_input, is_network_output = False, False

    def __init__(self, of: Tensor, trt: Any) -> None:
        self._of, self._trt = of, trt

    @property
    def shape(self) -> Dims:
        return Dims([each if isinstance(each, int) else -1 for each in self._of.shape])


class ILayer(Strict):
    name = property(lambda self: self._of.name)
    type = property(lambda self: self._trt.LayerType[self._of.kind])
    num_inputs = property(lambda self: len(self._of.inputs))
    num_outputs = property(lambda self: len(self._of.outputs))
    metadata = ""

    def __init__(self, of: Layer, trt: Any) -> None:
        self._of, self._trt = of, trt

    def get_input(self, index: int) -> ITensor | None:
        return ITensor(self._of.inputs[index], self._trt) if index < len(self._of.inputs) else None

    def get_output(self, index: int) -> ITensor | None:
        return ITensor(self._of.outputs[index], self._trt) if index < len(self._of.outputs) else None

    def get_output_type(self, index: int) -> Any:
        return self._trt.DataType[self._of.outputs[index].dtype]


class IPluginV3Layer(ILayer):
    """What `get_layer` gives has to be made one: `layer.__class__ = trt.IPluginV3Layer`."""

    @property
    def plugin(self) -> Any:
        core = SimpleNamespace(plugin_name=self._of.plugin, plugin_version="1", plugin_namespace="")
        return SimpleNamespace(get_capability_interface=lambda type: core)


class INetworkDefinition(Strict):
    name = "Unnamed Network 0"
    num_layers = property(lambda self: len(self._layers))
    num_inputs = property(lambda self: len(self._inputs))
    num_outputs = property(lambda self: len(self._outputs))

    def __init__(self, trt: Any, flags: int) -> None:
        self._trt, self._flags = trt, flags
        self._inputs: list[Tensor] = []
        self._outputs: list[Tensor] = []
        self._layers: list[Layer] = []
        self._onnx = b""

    def get_layer(self, index: int) -> ILayer:
        return self._trt.ILayer(self._layers[index], self._trt)

    def get_input(self, index: int) -> ITensor:
        return self._trt.ITensor(self._inputs[index], self._trt)

    def get_output(self, index: int) -> ITensor:
        return self._trt.ITensor(self._outputs[index], self._trt)

    def get_flag(self, flag: Any) -> bool:
        return bool(self._flags >> int(flag) & 1)


class ParserError(Strict):
    def __init__(self, trt: Any, desc: str, node: onnx.NodeProto | None = None, code: str = "INVALID_NODE") -> None:
        self._desc, self._node, self._code = desc, node, trt.ErrorCode[code]

    def desc(self) -> str:
        return self._desc

    def code(self) -> Any:
        return self._code

    def node_name(self) -> str:
        return self._node.name if self._node else ""

    def node_operator(self) -> str:
        return self._node.op_type if self._node else ""


class OnnxParser(Strict):
    num_errors = property(lambda self: len(self._errors))
    flags = 0

    def __init__(self, network: INetworkDefinition, logger: Any) -> None:
        self._network, self._logger = network, logger
        self._errors: list[ParserError] = []
        self._flags: set[Any] = set()

    def set_flag(self, flag: Any) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        self._flags.discard(flag)

    def get_flag(self, flag: Any) -> bool:
        return flag in self._flags

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def clear_errors(self) -> None:
        self._errors.clear()

    def parse_from_file(self, model: str) -> bool:
        with open(model, "rb") as file:
            return self.parse(file.read(), model)

    def parse(self, model: Any, path: str | None = None) -> bool:
        trt, network = self._trt, self._network
        try:
            proto = onnx.load_from_string(bytes(model))
            onnx.checker.check_model(proto)
        except Exception as error:  # of protobuf and of the checker
            self._error(f"Failed to parse ONNX model from buffer: {error}", code="MODEL_DESERIALIZE_FAILED")
            return False
        for node in proto.graph.node:
            if is_plugin(node) and node.op_type not in trt._world.plugins:
                self._error(
                    "Plugin not found, are the plugin name, version, and namespace correct?", node, "UNSUPPORTED_NODE"
                )
            if node.op_type in trt._world.refused_operators:
                self._error(f"No importer registered for op: {node.op_type}", node, "UNSUPPORTED_NODE")
        if self._errors:
            return False
        network._inputs = [tensor(each) for each in proto.graph.input]
        network._outputs = [tensor(each) for each in proto.graph.output]
        network._layers, network._onnx = network_layers(proto), bytes(model)
        return True

    def _error(self, desc: str, node: onnx.NodeProto | None = None, code: str = "INVALID_NODE") -> None:
        self._errors.append(ParserError(self._trt, desc, node, code))
        self._trt._world.log(self._logger, "ERROR", f"ModelImporter.cpp: {desc}")


class IOptimizationProfile(Strict):
    extra_memory_target = 1.0

    def __init__(self, trt: Any, logger: Any) -> None:
        self._trt, self._logger = trt, logger
        self._shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        shapes = [list(each) for each in (min, opt, max)]
        if not all(low <= usual <= high for low, usual, high in zip(*shapes, strict=True)):
            self._trt._world.log(
                self._logger, "ERROR", f"IOptimizationProfile::setDimensions: {input}: not min<=opt<=max"
            )
            raise ValueError(f"Shape provided for optimization profile is inconsistent: {shapes}")
        self._shapes[input] = shapes

    def get_shape(self, input: str) -> list[Dims]:
        return [Dims(each) for each in self._shapes.get(input, [])]


class ITimingCache(Strict):
    """header: of the version and the GPU; a cache of another header is refused where it is used."""

    def __init__(self, data: bytes, header: bytes) -> None:
        self._header, *lines = data.split(b"\n") if data else [header]
        self._data = set(lines)

    def serialize(self) -> IHostMemory:
        return IHostMemory(b"\n".join([self._header, *sorted(self._data)]))

    def combine(self, input_cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if input_cache._header != self._header:
            return False
        self._data |= input_cache._data
        return True

    def reset(self) -> bool:
        self._data.clear()
        return True


class IBuilderConfig(Strict):
    profiling_verbosity = builder_optimization_level = hardware_compatibility_level = progress_monitor = None
    runtime_platform = engine_capability = tiling_optimization_level = None
    max_aux_streams, avg_timing_iterations, l2_limit_for_tiling, max_num_tactics = -1, 1, -1, -1
    plugins_to_serialize: list[str] = []  # noqa: RUF012

    def __init__(self, trt: Any) -> None:
        self._trt = trt
        self._flags: set[Any] = {trt.BuilderFlag.TF32}  # on unless it is cleared
        self._profiles: list[IOptimizationProfile] = []
        self._pools: dict[Any, int] = {}
        self._cache: ITimingCache | None = None
        self._capabilities: list[Any] = []
        self.profiling_verbosity = trt.ProfilingVerbosity.LAYER_NAMES_ONLY
        self.hardware_compatibility_level = trt.HardwareCompatibilityLevel.NONE
        self.runtime_platform, self.builder_optimization_level = trt.RuntimePlatform.SAME_AS_BUILD, 3

    @property
    def flags(self) -> int:
        return sum(1 << int(each) for each in self._flags)

    def set_flag(self, flag: Any) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        self._flags.discard(flag)

    def get_flag(self, flag: Any) -> bool:
        return flag in self._flags

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self._pools[pool] = pool_size

    def get_memory_pool_limit(self, pool: Any) -> int:
        return self._pools.get(pool, self._trt._world.cuda.memory)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._profiles)

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: Any) -> ITimingCache:
        return self._trt.ITimingCache(bytes(serialized_timing_cache), self._header)

    @property
    def _header(self) -> bytes:
        return f"{self._trt.__version__} {self._trt._world.cuda.capability}".encode()

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if cache._header != self._header:
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache

    @property
    def num_compute_capabilities(self) -> int:
        return len(self._capabilities)

    @num_compute_capabilities.setter
    def num_compute_capabilities(self, number: int) -> None:
        self._capabilities = [self._trt.ComputeCapability.NONE] * number

    def get_compute_capability(self, index: int) -> Any:
        return self._capabilities[index]

    def set_compute_capability(self, compute_capability: Any, index: int) -> bool:
        if not 0 <= index < len(self._capabilities):
            return False
        self._capabilities[index] = compute_capability
        return True


class Builder(Strict):
    max_threads = 1
    platform_has_fast_fp16 = True

    def __init__(self, logger: Any) -> None:
        world = self._trt._world
        self._logger = world.check_logger(logger)
        if not world.cuda.gpus:
            world.log(logger, "ERROR", "CUDA initialization failure with error: 35")
            if not world.flavour.rtx:
                raise TypeError("pybind11::init(): factory function returned nullptr")

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        return self._trt.INetworkDefinition(self._trt, flags)

    def create_builder_config(self) -> IBuilderConfig:
        return self._trt.IBuilderConfig(self._trt)

    def create_optimization_profile(self) -> IOptimizationProfile:
        return self._trt.IOptimizationProfile(self._trt, self._logger)

    def get_plugin_registry(self) -> Any:
        return self._trt.get_plugin_registry()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        world, trt = self._trt._world, self._trt
        problem = self._problem(network, config)
        if problem:
            world.log(self._logger, "ERROR", f"IBuilder::buildSerializedNetwork: Error Code 4: {problem}")
            return None
        if not self._progress(config.progress_monitor, len(network._layers)):
            return None
        if config._cache is not None:
            keys = {hashlib.sha256(layer.name.encode()).hexdigest()[:8].encode() for layer in network._layers}
            config._cache._data |= set() if world.flavour.rtx else keys
        level = trt.HardwareCompatibilityLevel(config.hardware_compatibility_level)
        plan = Plan(
            package=world.flavour.module,
            version=world.flavour.version,
            capability=list(world.cuda.capability),
            capabilities=[each.name for each in config._capabilities],
            hardware=level.name,
            flags=sorted(each.name for each in config._flags),
            verbosity=trt.ProfilingVerbosity(config.profiling_verbosity).name,
            profiles=[profile._shapes for profile in config._profiles],
            inputs=network._inputs,
            outputs=network._outputs,
            layers=network._layers,
            onnx=network._onnx,
        )
        return IHostMemory(plan.to_bytes())

    def _problem(self, network: INetworkDefinition, config: IBuilderConfig) -> str:
        if not network._outputs:
            return "Network must have at least one output"
        if any(profile._trt is not self._trt for profile in config._profiles):
            return "a profile of another builder"
        for each in network._inputs:
            if all(isinstance(size, int) for size in each.shape):
                continue
            if not config._profiles:
                return (
                    f"Network has dynamic or shape inputs ({each.name}), but no optimization profile has been defined."
                )
            for number, profile in enumerate(config._profiles):
                if each.name not in profile._shapes:
                    return f"profile {number} has no shapes for the dynamic input {each.name}"
                for shape in profile._shapes[each.name]:
                    pairs = zip(each.shape, shape, strict=False)
                    if len(shape) != len(each.shape) or any(isinstance(a, int) and a != b for a, b in pairs):
                        return f"profile {number}: {shape} for {each.name} is not {each.shape}"
        workspace = config._pools.get(self._trt.MemoryPoolType.WORKSPACE, LEAST_WORKSPACE)
        if workspace < LEAST_WORKSPACE:
            name = network._layers[0].name
            return f"Could not find any implementation for node {name} due to insufficient workspace."
        return ""

    @staticmethod
    def _progress(monitor: Any, layers: int) -> bool:
        if monitor is None:
            return True
        phases = (("Building Engine", None, 2), ("Selecting tactics", "Building Engine", layers))
        for name, parent, steps in phases:
            monitor.phase_start(name, parent, steps)
        going = all(monitor.step_complete("Selecting tactics", step) for step in range(layers))
        going = going and all(monitor.step_complete("Building Engine", step) for step in range(2))
        for name, _, _ in reversed(phases):
            monitor.phase_finish(name)
        return going
