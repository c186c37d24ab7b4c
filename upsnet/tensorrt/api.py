"""TensorRT 10, TensorRT 11 and TensorRT-RTX as one interface: what differs between them stands in this file alone."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import threading
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal, NamedTuple

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


class Api(NamedTuple):
    """One of the packages."""

    name: Name
    module: ModuleType | Any  # Any: it has no types

    # TensorRT's types that NumPy has, too
    numpy_types: ClassVar[dict[str, str]] = {
        "FLOAT": "float32",
        "HALF": "float16",
        "INT8": "int8",
        "INT32": "int32",
        "INT64": "int64",
        "UINT8": "uint8",
        "BOOL": "bool",
    }

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


def make_logger(api: Api) -> Any:
    """A logger that keeps the errors, in `.errors`."""
    trt = api.module

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            errors = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)
            if severity in errors and not any(text in message for text in WITHOUT_A_GPU):
                self.errors.append(message)

    return Logger()


def take_errors(logger: Any) -> list[str]:
    """What its log has since it was asked last."""
    errors, logger.errors = logger.errors, []
    return list(errors)


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
        raise InputError(f"{plugins}: {problem}")
    return runtime


def make_context(api: Api, engine: Any) -> Any:
    """An execution context whose device memory its user gives it (`set_device_memory`). None: see the log.

    engine: ICudaEngine. TensorRT-RTX's capture CUDA graphs by themselves.
    """
    strategy = api.module.ExecutionContextAllocationStrategy.USER_MANAGED
    if not api.captures_itself:
        return engine.create_execution_context(strategy)
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(strategy)
    config.cuda_graph_strategy = api.module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    return engine.create_execution_context(config)


def can_capture(api: Api, engine: Any) -> bool:
    """Whether its user may capture a context's work in a CUDA graph: not where it does that by itself, nor where
    weights are streamed, which makes every call wait."""
    return not api.captures_itself and not engine.streamable_weights_size


_loaded: dict[tuple[int, str], Path] = {}  # plugin libraries by module and content
_loading = threading.Lock()


def load_plugins(api: Api, library: Path) -> str:
    """Load the library, which registers its plugins itself, where one of the same content has not been loaded yet.
    Returns what is wrong, else "".

    A second library of plugins of the same names cannot be had in one process: they would not be registered.
    """
    with _loading:
        try:
            key = (id(api.module), sha256(library))
        except OSError as error:
            return f"the plugin library cannot be read ({error.strerror}); build it with `make plugins`"
        if key in _loaded:
            return ""
        registry = api.module.get_plugin_registry()
        before = len(registry.all_creators)
        try:
            ctypes.CDLL(str(library.resolve()))
        except OSError as error:
            return f"the plugin library cannot be loaded ({error}); build it again with `make plugins`"
        if len(registry.all_creators) == before:
            others = [path for (module, _), path in _loaded.items() if module == id(api.module)]
            if others:
                return f"{others[0]}, of another build, is loaded already; take a new process for each build"
            return f"{library} registered no plugin with {api.name} {api.version}; build it with `make plugins`"
        _loaded[key] = library
        return ""
