"""The fake TensorRT's runtime side: runs a plan's ONNX file on the memory of the fake CUDA."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import onnxruntime as ort

from tests.upsnet.tensorrt.fake_builder import Dims, IHostMemory, Strict
from tests.upsnet.tensorrt.fake_context import SCRATCH, IExecutionContext, IRuntimeConfig
from tests.upsnet.tensorrt.fake_cuda import Fault
from tests.upsnet.tensorrt.fake_plan import CAPABILITIES, NUMPY, Plan, Tensor


class Runtime(Strict):
    max_threads, temporary_directory, engine_host_code_allowed, DLA_core = 1, "", False, 0
    engine_header_size = 36

    def __init__(self, logger: Any) -> None:
        self._logger = self._trt._world.check_logger(logger)

    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
        plan, problem = self._read(bytes(serialized_engine))
        if plan is None or problem:
            self._trt._world.log(self._logger, "ERROR", f"IRuntime::deserializeCudaEngine: {problem}")
            return None
        try:
            return self._trt.ICudaEngine(self, plan)
        except Fault as fault:
            self._trt._world.log(self._logger, "ERROR", f"Error Code 2: OutOfMemory ({fault.code.name})")
            return None

    def get_plugin_registry(self) -> Any:
        return self._trt.get_plugin_registry()

    def get_engine_validity(self, buffer: Any) -> tuple[Any, int]:
        plan, problem = self._read(bytes(buffer))
        bits = self._trt.EngineInvalidityDiagnostics
        if plan is None and "magicTag" in problem:
            return self._trt.EngineValidity.INVALID, 1 << int(bits.MALFORMED_ENGINE)
        if "version" in problem:
            return self._trt.EngineValidity.INVALID, 1 << int(bits.VERSION_MISMATCH)
        if "compute" in problem:
            return self._trt.EngineValidity.INVALID, 1 << int(bits.UNSUPPORTED_CC)
        return (self._trt.EngineValidity.INVALID if problem else self._trt.EngineValidity.VALID), 0

    def _read(self, data: bytes) -> tuple[Plan | None, str]:
        world = self._trt._world
        if not world.cuda.gpus:
            return None, "Error Code 1: Cuda Runtime (cudaError 35: CUDA driver version is insufficient)"
        try:
            plan = Plan.from_bytes(data)
        except ValueError as error:
            return None, f"Error Code 1: Serialization (Serialization assertion {error} failed.)"
        compatible = "VERSION_COMPATIBLE" in plan.flags
        own, its = (_number(each) for each in (world.flavour.version, plan.version))
        if plan.package != world.flavour.module or (own != its and not (compatible and own >= its)):
            return plan, (
                "Error Code 6: API Usage Error (The engine plan file is not compatible with this version of TensorRT, "
                f"expecting library version {world.flavour.version} got {plan.version}, please rebuild.)"
            )
        if compatible and "EXCLUDE_LEAN_RUNTIME" not in plan.flags and not self.engine_host_code_allowed:
            return (
                plan,
                "Error Code 4: API Usage Error (engine host code is not allowed: setEngineHostCodeAllowed(true))",
            )
        if not _runs_on(plan, world.cuda.capability):
            here, there = (f"{major}.{minor}" for major, minor in (world.cuda.capability, plan.capability))
            return plan, (
                "Error Code 6: API Usage Error (The engine plan file is generated on an incompatible device, expecting "
                f"compute {here} got compute {there}, please rebuild.)"
            )
        for plugin in plan.plugins:
            if plugin not in world.plugins:
                return plan, (
                    f"IPluginRegistry::getCreator: Error Code 4: API Usage Error (Cannot find plugin: {plugin}, "
                    "version: 1, namespace:.)"
                )
        return plan, ""


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(each) for each in version.split("."))


def _runs_on(plan: Plan, capability: tuple[int, int]) -> bool:
    here = f"SM{capability[0]}{capability[1]}"
    if plan.package == "tensorrt_rtx":
        named = set(plan.capabilities) - {"CURRENT"}
        return here in (named or CAPABILITIES)
    if plan.hardware == "AMPERE_PLUS":
        return capability >= (8, 0)
    return tuple(plan.capability) == capability


class ICudaEngine(Strict):
    name = "Unnamed Network 0"
    num_io_tensors = property(lambda self: len(self._tensors))
    num_optimization_profiles = property(lambda self: max(1, len(self._plan.profiles)))
    num_layers = property(lambda self: len(self._plan.layers))
    refittable = property(lambda self: "REFIT" in self._plan.flags)
    device_memory_size_v2 = property(lambda self: max(self._scratch(each) for each in self._profile_indices()))
    streamable_weights_size = property(lambda self: len(self._plan.onnx) if self._streams else 0)
    hardware_compatibility_level = property(lambda self: self._trt.HardwareCompatibilityLevel[self._plan.hardware])
    profiling_verbosity = property(lambda self: self._trt.ProfilingVerbosity[self._plan.verbosity])
    num_aux_streams = 0
    error_recorder = None

    def __init__(self, runtime: Runtime, plan: Plan) -> None:
        self._runtime, self._plan, self._trt = runtime, plan, runtime._trt
        self._logger, self._cuda = runtime._logger, runtime._trt._world.cuda
        self._tensors: dict[str, Tensor] = {each.name: each for each in [*plan.inputs, *plan.outputs]}
        self._inputs = [each.name for each in plan.inputs]
        self._streams = "WEIGHT_STREAMING" in plan.flags
        self._stripped = "STRIP_PLAN" in plan.flags
        self._session: ort.InferenceSession | None = None
        self._known: dict[tuple[tuple[int, ...], ...], dict[str, list[int]]] = {}
        self._lock = threading.Lock()
        self._budget = self.streamable_weights_size  # as much: nothing is streamed
        self._contexts = 0
        self._device = self._cuda.device
        self._weights = self._cuda.allocate(max(1, len(plan.onnx)), "weights of an engine", self._device)

    def __del__(self) -> None:
        if hasattr(self, "_weights"):
            self._cuda.release(self._weights)

    @property
    def weight_streaming_budget_v2(self) -> int:
        return self._budget

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, budget: int) -> None:
        if self._contexts or not self._streams:
            raise RuntimeError("setWeightStreamingBudgetV2: there are contexts, or the plan streams no weights")
        self._budget = budget

    def _profile_indices(self) -> range:
        return range(self.num_optimization_profiles)

    def _scratch(self, profile: int) -> int:
        return SCRATCH * self._bounds(self._inputs[0], profile)[2][0]

    def _bounds(self, name: str, profile: int) -> list[list[int]]:
        if self._plan.profiles and name in self._plan.profiles[profile]:
            return self._plan.profiles[profile][name]
        return [[int(each) for each in self._tensors[name].shape]] * 3

    def _run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        with self._lock:
            if self._session is None:
                options = ort.SessionOptions()
                options.log_severity_level = 3
                self._session = ort.InferenceSession(self._plan.onnx, options, providers=["CPUExecutionProvider"])
        return self._session.run([each.name for each in self._plan.outputs], feeds)

    def _shapes_for(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, list[int]]:
        """Of the outputs, which TensorRT computes from those of the inputs: here by a run on zeros."""
        key = tuple(shapes[name] for name in self._inputs)
        if key not in self._known:
            kinds = {name: np.dtype(NUMPY[self._tensors[name].dtype]) for name in self._inputs}
            feeds: dict[str, np.ndarray] = {name: np.zeros(shapes[name], kinds[name]) for name in self._inputs}
            answers = zip(self._plan.outputs, self._run(feeds), strict=True)
            self._known[key] = {each.name: list(array.shape) for each, array in answers}
        return self._known[key]

    def serialize(self) -> IHostMemory:
        return IHostMemory(self._plan.to_bytes())

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        mode = self._trt.TensorIOMode
        if name not in self._tensors:
            return mode.NONE
        return mode.INPUT if name in self._inputs else mode.OUTPUT

    def get_tensor_shape(self, name: str) -> Dims:
        return Dims([each if isinstance(each, int) else -1 for each in self._tensors[name].shape])

    def get_tensor_dtype(self, name: str) -> Any:
        return self._trt.DataType[self._tensors[name].dtype]

    def get_tensor_location(self, name: str) -> Any:
        return self._trt.TensorLocation.DEVICE

    def get_tensor_format(self, name: str) -> Any:
        return self._trt.TensorFormat.LINEAR

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        if name not in self._inputs or not 0 <= profile_index < self.num_optimization_profiles:
            self._trt._world.log(self._logger, "ERROR", f"ICudaEngine::getProfileShape: no {name}, {profile_index}")
            return []
        return [Dims(each) for each in self._bounds(name, profile_index)]

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return self._scratch(profile_index)

    def get_weight_streaming_automatic_budget(self) -> int:
        return self.streamable_weights_size // 2

    def create_runtime_config(self) -> IRuntimeConfig:
        return self._trt.IRuntimeConfig(self._trt)

    def create_engine_inspector(self) -> Any:
        return self._trt.EngineInspector(self)

    def create_execution_context(self, strategy: Any = None, runtime_config: Any = None) -> IExecutionContext | None:
        allocation = self._trt.ExecutionContextAllocationStrategy
        if runtime_config is None and isinstance(strategy, IRuntimeConfig):
            strategy, runtime_config = None, strategy
        if runtime_config is not None:
            strategy = runtime_config.get_execution_context_allocation_strategy()
        try:
            return self._trt.IExecutionContext(
                self, allocation.STATIC if strategy is None else strategy, runtime_config
            )
        except Fault as fault:
            self._trt._world.log(self._logger, "ERROR", f"Error Code 2: OutOfMemory ({fault.code.name})")
            return None
