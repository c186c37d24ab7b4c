"""TensorRT 10, TensorRT 11 and TensorRT-RTX as one interface: what differs between them stands in this file alone."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, Protocol

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
HARDWARE_LEVELS = {"same": "SAME_COMPUTE_CAPABILITY", "ampere+": "AMPERE_PLUS"}


def too_old(name: Name, version: str) -> str | None:
    """What is wrong with a version of that package, if something is."""
    oldest = OLDEST[name]
    if tuple(int(part) for part in version.split(".")[:2]) >= oldest:
        return None
    wanted = ".".join(map(str, oldest))
    return (
        f"{name} {version} is too old for the plugins: {wanted} or newer; pip install '{DISTRIBUTION}[{EXTRAS[name]}]'"
    )


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
