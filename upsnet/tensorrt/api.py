"""TensorRT 10, TensorRT 11 and TensorRT-RTX as one interface: what differs between them stands in this file alone."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import json
import re
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, Protocol
from weakref import WeakKeyDictionary

from upsnet import DISTRIBUTION
from upsnet.errors import InputError, first_line
from upsnet.files import sha256

Name = Literal["tensorrt", "tensorrt-rtx"]
TITLES: dict[Name, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
MODULES: dict[Name, tuple[str, ...]] = {
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
EXTRAS: dict[Name, str] = {"tensorrt": "gpu", "tensorrt-rtx": "rtx"}
# Every builder without a GPU logs these errors, and builds all the same.
WITHOUT_A_GPU = ("CUDA initialization failure", "catchCudaError")
MOST_ERRORS = 3  # that are shown
# What our library registers; see plugins_cuda/tensorrt/registration.cpp
PLUGIN_NAMES = frozenset(
    {"RoiAlignFpn", "PaddedNms", "PaddedBatchedNms", "DeformConv2d", "ModulatedDeformConv2d", "PanopticFusion"}
)
# Its types that NumPy has, too
NUMPY_TYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}


class Phases(Protocol):
    """Who follows a build: TensorRT's phases lie in one another, each with a number of steps."""

    def start(self, phase: str, parent: str | None, steps: int) -> None: ...

    def step(self, phase: str, step: int) -> None: ...

    def finish(self, phase: str) -> None: ...


class Api(NamedTuple):
    """One of the packages."""

    name: Name
    module: ModuleType | Any  # Any: it has no types

    @property
    def version(self) -> str:
        return str(self.module.__version__)

    @property
    def title(self) -> str:
        return TITLES[self.name]

    @property
    def captures_itself(self) -> bool:
        """Whether contexts replay CUDA graphs by themselves, when they are told to: TensorRT-RTX's."""
        return hasattr(self.module, "CudaGraphStrategy")


def installed(name: Name) -> str | None:
    """The module of that package, if it is installed."""
    return next((module for module in MODULES[name] if importlib.util.find_spec(module) is not None), None)


def open_api(name: Name) -> Api:
    """InputError, with the cure, where the package is not installed or does not load."""
    module = installed(name)
    cure = f"pip install '{DISTRIBUTION}[{EXTRAS[name]}]'"
    if module is None:
        raise InputError(f"the package {MODULES[name][0]} is not installed: {cure}")
    try:
        return Api(name, importlib.import_module(module))
    except (ImportError, OSError) as error:
        raise InputError(f"the package {module} does not load ({first_line(error)}); install it anew: {cure}") from None


class Said(str):
    """An error of a log, and the thread that it was said in."""

    thread: int


def make_logger(api: Api) -> Any:
    """A logger that keeps the errors, in `.errors`."""
    trt = api.module

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[Said] = []

        def log(self, severity: Any, message: str) -> None:
            errors = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)
            if severity in errors and not any(text in message for text in WITHOUT_A_GPU):
                said = Said(message)
                said.thread = threading.get_ident()
                self.errors.append(said)

    return Logger()


def take_errors(logger: Any, own: bool = False) -> list[str]:
    """What its log has since it was asked last: what was said in this thread; where that is nothing, and not `own`
    alone is asked for, in any, as TensorRT has threads of its own."""
    thread, errors = threading.get_ident(), list(logger.errors)
    taken = [each for each in errors if each.thread == thread] or ([] if own else errors)
    for each in taken:
        with suppress(ValueError):  # another thread took it
            logger.errors.remove(each)
    return [str(each) for each in taken]


def described(errors: Sequence[str]) -> str:
    """The first few errors of a log, in one line."""
    texts = list(dict.fromkeys(" ".join(each.split()) for each in errors))
    return "; ".join(texts[:MOST_ERRORS]) or "it says nothing about it"


def make_runtime(api: Api, logger: Any, host_code: bool = False, plugins: Path | None = None) -> Any:
    """What deserialises plans. host_code: see `Engine`. plugins: their library, which is loaded where it has not been.

    InputError where the library cannot be loaded.
    """
    try:
        runtime = api.module.Runtime(logger)
    except TypeError:  # the C++ object could not be made
        raise InputError(f"{api.title} {api.version} does not start: {described(take_errors(logger))}") from None
    if host_code:
        runtime.engine_host_code_allowed = True
    if plugins is not None and (problem := load_plugins(api, plugins)):  # it looks for the runtime's registry
        raise InputError(problem)
    return runtime


def make_config(api: Api, engine: Any, kept: bytes) -> Any:
    """How TensorRT-RTX runs an engine (ICudaEngine): it captures CUDA graphs by itself, and compiles kernels, of which
    those in `kept` are compiled already (b"": none). What is of another version, GPU or driver it leaves alone.

    None for TensorRT, whose kernels are in the plan.
    """
    if not api.captures_itself:
        return None
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(api.module.ExecutionContextAllocationStrategy.USER_MANAGED)
    config.cuda_graph_strategy = api.module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    cache = config.create_runtime_cache()
    if kept:
        cache.deserialize(kept)
    config.set_runtime_cache(cache)
    return config


def compiled_kernels(config: Any) -> bytes:
    """What is `kept` for the next time."""
    return bytes(memoryview(config.get_runtime_cache().serialize()))


def make_context(api: Api, engine: Any, config: Any) -> Any:
    """An execution context whose device memory its user gives it (`set_device_memory`). None: see the log.

    engine: ICudaEngine. config: of `make_config`.
    """
    if config is not None:
        return engine.create_execution_context(config)
    return engine.create_execution_context(api.module.ExecutionContextAllocationStrategy.USER_MANAGED)


def scratch_size(context: Any) -> int:
    """Bytes of device memory that a context needs for the shapes that it is set to."""
    return int(context.update_device_memory_size_for_shapes())


def can_capture(api: Api, engine: Any) -> bool:
    """Whether its user may capture an engine's contexts in CUDA graphs: not where they do that by themselves, nor
    where weights are streamed, which makes every call wait."""
    return not api.captures_itself and engine.weight_streaming_budget_v2 >= engine.streamable_weights_size


def stream_weights(engine: Any) -> None:
    """Of a plan that was built for it, as many weights stay in the host's memory as the GPU has no room for. Without
    this call none do. Before the engine has contexts."""
    if engine.streamable_weights_size:
        engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()


def is_capturable(context: Any, stream: int) -> bool:
    """What a context itself says about that, where its version has a word on it."""
    return not hasattr(context, "is_stream_capturable") or bool(context.is_stream_capturable(stream))


# Plugin libraries that were loaded, by the package that they registered with and by their content
_loaded: WeakKeyDictionary[Any, dict[str, Path]] = WeakKeyDictionary()
_loading = threading.Lock()


def load_plugins(api: Api, library: Path) -> str:
    """Load the library, whose plugins the package knows then. Returns what is wrong, else "".

    A second build of the same plugins cannot be had in one process: it would not be registered.
    """
    again = "build it again with `make plugins`"
    with _loading:
        try:
            content = sha256(library)
        except InputError as error:
            return f"{error}; {again}"
        loaded = _loaded.setdefault(api.module, {})
        if content in loaded:
            return ""
        if loaded:
            other = next(iter(loaded.values()))
            return f"{other}, of another build, is loaded already: take a new process for each build"
        registry, file = api.module.get_plugin_registry(), str(library.resolve())
        try:
            ctypes.CDLL(file)
        except OSError as error:
            return f"{library}: the plugin library cannot be loaded ({error}); {again}"
        # It registers itself once, with every TensorRT that is in the process by then. Where it was there before this
        # package was, the registry has to ask.
        if not _knows_plugins(registry):
            registry.load_library(file)
        if not _knows_plugins(registry):
            return f"{library} registered no plugin of ours with {api.name} {api.version}; {again}"
        loaded[content] = library
        return ""


def _knows_plugins(registry: Any) -> bool:
    return not PLUGIN_NAMES.isdisjoint(each.name for each in registry.all_creators)


# Of the builder


OLDEST: dict[Name, tuple[int, int]] = {"tensorrt": (10, 9), "tensorrt-rtx": (1, 7)}  # our plugins' interface
# The options that a builder has. TensorRT-RTX accepts the calls of the others, and nothing comes of them: its kernels
# are chosen and compiled where the engine runs, for every GPU from Ampere on, and its wheel has no lean runtime.
BUILDER_OPTIONS: dict[Name, frozenset[str]] = {
    "tensorrt": frozenset(
        {"workspace", "level", "timing_cache", "version_compatible", "hardware_compatible", "weight_streaming", "refit"}
    ),
    "tensorrt-rtx": frozenset({"workspace", "compute_capabilities", "weight_streaming", "refit"}),
}
FP8_SINCE = 89  # the first compute capability with FP8: Ada
HARDWARE_LEVELS: dict[str, str] = {"same": "SAME_COMPUTE_CAPABILITY", "ampere+": "AMPERE_PLUS"}


def too_old(name: Name, version: str) -> str | None:
    """What is wrong with a version of that package, if something is."""
    oldest = OLDEST[name]
    if tuple(int(part) for part in version.split(".")[:2]) >= oldest:
        return None
    wanted = ".".join(map(str, oldest))
    return (
        f"{name} {version} is too old for the plugins: {wanted} or newer; pip install '{DISTRIBUTION}[{EXTRAS[name]}]'"
    )


def cuda_of(name: Name) -> str:
    """The major version of CUDA that the installed package was made for, as "13"; "" where its name does not say so."""
    packages = (str(each.name).replace("_", "-") for each in importlib.metadata.distributions())
    found = (re.match(rf"{name}-cu(\d+)", package) for package in packages)
    return max((each[1] for each in found if each), default="")


def make_network(api: Api, builder: Any) -> Any:
    """An empty network that is strongly typed: the builder changes no type. TensorRT 11 knows no other kind, and its
    flag for it only warns."""
    flag = api.module.NetworkDefinitionCreationFlag
    weak = int(api.version.split(".")[0]) < 11 and hasattr(flag, "STRONGLY_TYPED")
    return builder.create_network(1 << int(flag.STRONGLY_TYPED) if weak else 0)


def set_flag(api: Api, config: Any, name: str, value: bool = True) -> None:
    """A flag of the builder by its name, as "TF32", which every builder sets by itself."""
    flag = getattr(api.module.BuilderFlag, name)
    (config.set_flag if value else config.clear_flag)(flag)


def fp8_capabilities(api: Api) -> tuple[str, ...]:
    """TensorRT-RTX: those of the GPUs that compute in FP8. Without a word it would build an engine with FP8 for older
    ones, too, which it refuses to do for any of them by name."""
    names = (name.removeprefix("SM") for name in api.module.ComputeCapability.__members__)
    return tuple(name for name in names if name.isdecimal() and int(name) >= FP8_SINCE)


def set_compute_capabilities(api: Api, config: Any, wanted: Sequence[str]) -> None:
    """TensorRT-RTX: the GPUs that the engine is for, as "86". InputError that names those that it knows."""
    known = {name.removeprefix("SM"): value for name, value in api.module.ComputeCapability.__members__.items()}
    config.num_compute_capabilities = len(wanted)
    for index, each in enumerate(wanted):
        if not each.isdecimal() or each not in known:
            there = ", ".join(name for name in known if name.isdecimal())
            raise InputError(f"compute capability {each}: {api.name} {api.version} builds for {there}")
        config.set_compute_capability(known[each], index)


def set_hardware_compatible(api: Api, config: Any, word: str) -> None:
    """TensorRT: engines that run on other GPUs than the one they are built on; word: of HARDWARE_LEVELS."""
    config.hardware_compatibility_level = getattr(api.module.HardwareCompatibilityLevel, HARDWARE_LEVELS[word])


def make_monitor(api: Api, phases: Phases) -> Any:
    """An IProgressMonitor that hands on to `phases`, from whichever thread TensorRT calls it."""
    trt = api.module

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            phases.start(phase, parent, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            phases.step(phase, step)
            return True

        def phase_finish(self, phase: str) -> None:
            phases.finish(phase)

    return Monitor()


# What a profile is made of


def keep_layers(api: Api, config: Any) -> None:
    """The builder's engine goes on saying what its layers are: their names, types and nodes of the ONNX file."""
    config.profiling_verbosity = api.module.ProfilingVerbosity.DETAILED


def make_profiler(api: Api, report: Callable[[str, float], None]) -> Any:
    """An IProfiler that hands on every layer's name and milliseconds of every call."""
    trt = api.module

    class Profiler(trt.IProfiler):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()

        def report_layer_time(self, name: str, ms: float) -> None:
            report(name, ms)

    return Profiler()


def layer_information(api: Api, engine: Any) -> list[dict[str, Any]]:
    """What the inspector says of every layer, as its JSON has it; of an engine that `keep_layers` had no part in, the
    "Name" alone."""
    inspector = engine.create_engine_inspector()
    form = api.module.LayerInformationFormat.JSON
    found = [json.loads(inspector.get_layer_information(index, form)) for index in range(engine.num_layers)]
    return [each if isinstance(each, dict) else {"Name": str(each)} for each in found]
