"""TensorRT and TensorRT-RTX without a GPU, for tests: builds a "plan" from an ONNX file, and runs it.

    world = install(monkeypatch, "11.1")          # in this process: import tensorrt, import cuda.bindings.runtime
    library = write_plugins(folder / PLUGINS)     # a "library" whose plugins ctypes.CDLL registers
    env = environment(flavour="rtx", gpus=0)      # the same for a process that a test starts

A plan holds the ONNX file, the profiles, the types and what built it (fake_plan.py); running it is ONNX Runtime on the
memory of the fake CUDA (fake_cuda.py). Both refuse what the real ones refuse, and put down in `world.cuda.misuses` what
those answer with undefined behaviour. Versions differ as fake_names.py says. test_fakes.py holds every name and
parameter against the bindings of TensorRT-RTX 1.7 and of cuda-python.
"""

from __future__ import annotations

import ctypes
import importlib.abc
import importlib.util
import json
import math
import os
import platform
import struct
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from tests.upsnet.tensorrt import fake_builder, fake_context, fake_cuda, fake_inspector, fake_names, fake_runtime

if TYPE_CHECKING:
    import pytest

PLUGIN_NAMES = (
    "RoiAlignFpn", "PaddedNms", "PaddedBatchedNms", "DeformConv2d", "ModulatedDeformConv2d", "PanopticFusion",
    "BestAnchors", "UsedRows", "AllRows",
)  # fmt: skip
MODULES = (fake_builder, fake_runtime, fake_context, fake_inspector)
ELF_HEADER = 64  # bytes, with which a library begins
MARK = b"fake plugins\n"
VARIABLE = "UPSNET_FAKE_TENSORRT"  # "11.1,1,9.0": flavour, GPUs, compute capability
CLASSES = [
    "Builder", "INetworkDefinition", "IBuilderConfig", "IOptimizationProfile", "ITimingCache",
    "OnnxParser", "ParserError", "ILayer", "IPluginV3Layer", "ITensor", "Dims",
    "IHostMemory", "Runtime", "ICudaEngine", "IExecutionContext", "IRuntimeConfig",
    "IRuntimeCache", "EngineInspector", "Refitter", "Weights",
]  # fmt: skip


class World:
    """What a test says about this machine. plugins: those that are registered.

    capturable: what `is_stream_capturable` says, and whether a graph can be captured.
    """

    def __init__(self, flavour: str = "11.1", gpus: int = 1, capability: tuple[int, int] = (9, 0)) -> None:
        self.flavour = fake_names.FLAVOURS[flavour]
        self.cuda = fake_cuda.FakeCuda(gpus, capability=capability)
        self.plugins: set[str] = set()
        self.libraries: set[bytes] = set()  # that are in the process: a constructor runs once
        self.refused_operators: set[str] = set()
        self.capturable = True
        self.compiled = 0  # kernels, by TensorRT-RTX as it ran
        self.trt = make_module(self)
        self.modules = {
            self.flavour.module: self.trt,
            "cuda.bindings.runtime": fake_cuda.make_module(self.cuda),
            "cuda.bindings.driver": fake_cuda.make_driver(self.cuda),
        }
        for name, module in self.modules.items():
            module.__spec__ = ModuleSpec(name, None)

    def check_logger(self, logger: Any) -> Any:
        if not isinstance(logger, ILogger):
            raise TypeError("__init__(): incompatible constructor arguments: logger")
        return logger

    def log(self, logger: Any, severity: str, text: str) -> None:
        logger.log(self.trt.ILogger.Severity[severity], text)

    def load(self, library: Path) -> ctypes.CDLL | SimpleNamespace | None:
        """None where it is none of `write_plugins`'."""
        data = library.read_bytes() if library.is_file() else b""
        if not data[ELF_HEADER:].startswith(MARK):
            return None
        facts = json.loads(data[ELF_HEADER + len(MARK) :])
        if data not in self.libraries:
            self.plugins |= set(facts["plugins"])
        self.libraries.add(data)
        return SimpleNamespace(upsnet_kernel_abi=lambda: facts["kernel_abi"], _name=str(library), _handle=0)

    def forget_libraries(self) -> None:
        """As in a new process."""
        self.plugins.clear()
        self.libraries.clear()


class ILogger:
    Severity: Any

    def __init__(self) -> None:
        pass

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class IProfiler:
    def __init__(self) -> None:
        pass

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        raise NotImplementedError


class IProgressMonitor:
    def __init__(self) -> None:
        pass

    def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
        raise NotImplementedError

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise NotImplementedError

    def phase_finish(self, phase_name: str) -> None:
        raise NotImplementedError


class Absent:
    """A name that this version does not have."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        raise AttributeError(f"type object '{owner.__name__}' has no attribute '{self.name}'")

    def __set__(self, instance: Any, value: Any) -> None:
        raise AttributeError(f"'{type(instance).__name__}' object has no attribute '{self.name}'")


def make_module(world: World) -> Any:
    """The module `tensorrt` or `tensorrt_rtx`."""
    trt: Any = ModuleType(world.flavour.module)
    trt.__version__, trt._world = world.flavour.version, world
    for name, each in fake_names.enums(world.flavour).items():
        setattr(trt, name, each)
    for alias, kind in fake_names.ALIASES.items():
        setattr(trt, alias, trt.DataType[kind])
    lacking = fake_names.lacking(world.flavour)
    for name in CLASSES:
        base = next(found for module in MODULES if (found := getattr(module, name, None)) is not None)
        own: dict[str, Any] = {each: Absent() for each in lacking.get(name, ())}
        if issubclass(base, fake_builder.Strict):
            own["_trt"] = trt
        if name == "Runtime" and not world.flavour.rtx:
            own.pop("engine_header_size", None)
        setattr(trt, name, type(name, (base,), own))
    severity = trt.Severity
    del trt.Severity
    levels = {each.name: each for each in severity}
    trt.ILogger = type("ILogger", (ILogger,), {"Severity": severity, **levels})
    trt.Logger = type("Logger", (trt.ILogger,), {"__init__": _logger_init, "log": lambda self, severity, msg: None})
    trt.IProfiler, trt.IProgressMonitor = IProfiler, IProgressMonitor
    trt.get_plugin_registry = lambda: Registry(world)
    trt.init_libnvinfer_plugins = lambda logger, namespace: True
    trt.get_nv_onnx_parser_version = lambda: 200
    trt.volume = math.prod
    return trt


def _logger_init(self: Any, min_severity: Any = None) -> None:
    self.min_severity = min_severity


class Registry:
    """IPluginRegistry."""

    parent_search_enabled = True

    def __init__(self, world: World) -> None:
        self._world = world

    @property
    def all_creators(self) -> list[Any]:
        names = sorted(self._world.plugins)
        return [SimpleNamespace(name=name, plugin_version="1", plugin_namespace="") for name in names]

    def get_creator(self, type: str, version: str, plugin_namespace: str = "") -> Any:
        return next((each for each in self.all_creators if each.name == type), None)

    def load_library(self, plugin_path: str) -> object | None:
        """None where there is nothing to register."""
        before = set(self._world.plugins)
        self._world.load(Path(plugin_path))
        self._world.plugins |= set(json.loads(Path(plugin_path).read_bytes()[ELF_HEADER + len(MARK) :])["plugins"])
        return object() if self._world.plugins != before else None


def write_plugins(path: Path, names: tuple[str, ...] = PLUGIN_NAMES, kernel_abi: int = 1) -> Path:
    """A "library" that ctypes.CDLL takes where the fake is installed: it registers these plugins."""
    machine = {"x86_64": 62, "aarch64": 183}.get(platform.machine(), 62)
    head = struct.pack("<4sBBBxxxxxxxxxHHI", b"\x7fELF", 2, 1, 1, 3, machine, 1).ljust(ELF_HEADER, b"\0")
    path.write_bytes(head + MARK + json.dumps({"plugins": names, "kernel_abi": kernel_abi}).encode())
    return path


def _cdll(world: World) -> Any:
    real = ctypes.CDLL

    class CDLL(real):  # type: ignore[misc, valid-type]
        def __init__(self, name: Any = None, *given: Any, **named: Any) -> None:
            fake = None if name is None else world.load(Path(name))
            if fake is None:
                super().__init__(name, *given, **named)
            else:
                self.__dict__.update(vars(fake))

        def __getattr__(self, name: str) -> Any:
            if self.__dict__.get("_handle") == 0:
                raise AttributeError(f"{self._name}: undefined symbol: {name}")
            return super().__getattr__(name)

    return CDLL


def install(
    monkeypatch: pytest.MonkeyPatch, flavour: str = "11.1", gpus: int = 1, capability: tuple[int, int] = (9, 0)
) -> World:
    """For one test, in this process. Of tensorrt and tensorrt_rtx, the other is not installed then."""
    world = World(flavour, gpus, capability)
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, world.modules.get(name))  # None: import says that there is none
    monkeypatch.setattr(importlib.util, "find_spec", _find_spec(importlib.util.find_spec))
    for name, module in world.modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(ctypes, "CDLL", _cdll(world))
    return world


def _find_spec(real: Any) -> Any:
    """None for what the fake hides."""

    def find_spec(name: str, package: str | None = None) -> Any:
        hidden = name in sys.modules and sys.modules[name] is None
        try:
            return None if hidden else real(name, package)
        except ModuleNotFoundError:
            return None

    return find_spec


def environment(flavour: str = "11.1", gpus: int = 1, capability: tuple[int, int] = (9, 0)) -> dict[str, str]:
    """The environment of a process in which the fakes are installed: see site/sitecustomize.py."""
    here = Path(__file__).resolve()
    folders = [str(here.parent / "site"), str(here.parents[3]), os.environ.get("PYTHONPATH", "")]
    facts = f"{flavour},{gpus},{capability[0]}.{capability[1]}"
    return {**os.environ, VARIABLE: facts, "PYTHONPATH": os.pathsep.join(filter(None, folders))}


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Installs them when somebody asks for one."""

    names = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings", "cuda.bindings.runtime", "cuda.bindings.driver")

    def __init__(self, world: World) -> None:
        self.world = world

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname in self.world.modules:
            return ModuleSpec(fullname, self)
        if fullname in self.names:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.world.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        pass


def install_for_process() -> None:
    """What site/sitecustomize.py calls."""
    flavour, gpus, capability = os.environ[VARIABLE].split(",")
    major, minor = capability.split(".")
    world = World(flavour, int(gpus), (int(major), int(minor)))
    sys.meta_path.insert(0, Finder(world))
    importlib.util.find_spec = _find_spec(importlib.util.find_spec)
    ctypes.CDLL = _cdll(world)  # type: ignore[misc]
