"""TensorRT 10, TensorRT 11 and TensorRT-RTX as one interface: what differs between them stands in this file alone."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

from upsnet import DISTRIBUTION
from upsnet.errors import InputError, first_line

Name = Literal["tensorrt", "tensorrt-rtx"]
MODULES: dict[Name, tuple[str, ...]] = {
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
EXTRAS: dict[Name, str] = {"tensorrt": "gpu", "tensorrt-rtx": "rtx"}
# Every builder without a GPU logs these errors, and builds all the same.
WITHOUT_A_GPU = ("CUDA initialization failure", "catchCudaError")


class Api(NamedTuple):
    """One of the packages."""

    name: Name
    module: ModuleType | Any  # Any: it has no types

    @property
    def version(self) -> str:
        return str(self.module.__version__)


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


def load_plugins(api: Api, library: Path) -> str:
    """Load the library, which registers its plugins itself, where it has not yet. Returns what is wrong, else ""."""
    registry = api.module.get_plugin_registry()
    before = len(registry.all_creators)
    try:
        ctypes.CDLL(str(library.resolve()))
    except OSError as error:
        return f"the plugin library cannot be loaded ({error}); build it again with `make plugins`"
    if len(registry.all_creators) == before:
        return f"{library} registered no plugin with {api.name} {api.version}; build it with `make plugins`"
    return ""
