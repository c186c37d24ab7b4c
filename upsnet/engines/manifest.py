"""The manifest of an engine: a JSON beside it that says what it is, what it was made from and where it runs."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from upsnet.contract import CUDA_LIBRARY, LIBRARY, PLUGINS
from upsnet.errors import InputError
from upsnet.files import sha256
from upsnet.manifest import Manifest, Precision
from upsnet.report import Report, Sparse

Backend = Literal["onnxruntime", "tensorrt", "tensorrt-rtx", "torch-tensorrt"]
# What each backend's engine is called in an engine's folder.
ENGINES: dict[Backend, str] = {
    "onnxruntime": "model.onnx",
    "tensorrt": "model.plan",
    "tensorrt-rtx": "model.rtx.plan",
    "torch-tensorrt": "model.pt2",
}
# The library of custom operators that each needs beside it, by the names they may have.
LIBRARIES: dict[Backend, tuple[str, ...]] = {
    "onnxruntime": (LIBRARY, CUDA_LIBRARY),
    "tensorrt": (PLUGINS,),
    "tensorrt-rtx": (PLUGINS,),
    "torch-tensorrt": (),
}
Shape = tuple[int, ...]
Profile = dict[str, tuple[Shape, Shape, Shape]]  # input -> its smallest, usual and largest shape
Counts = dict[str, dict[str, int]]  # name -> type -> how many


class Part(BaseModel):
    """A file, by its name alone where it lies beside the engine."""

    model_config = ConfigDict(frozen=True)

    file: str
    sha256: str

    @classmethod
    def of(cls, path: Path, name: str | None = None) -> Part:
        return cls(file=name or path.name, sha256=sha256(path))


class ParityFigures(BaseModel):
    """What `upsnet parity` found for this engine, at one batch size."""

    model_config = ConfigDict(frozen=True)

    data: str
    images: int
    batch: int
    reference: str  # a runtime
    pq: float  # 0 to 1
    difference: float  # of PQ to the reference's
    identical: float  # share of the pixels


class EngineManifest(Report, Sparse):
    """One engine. What a backend does not have is None or empty."""

    cure: ClassVar[str] = "; build the engine again with `make engine`"

    backend: Backend
    engine: Part
    bytes: int
    model: Part  # what it was built from: an ONNX file, or a checkpoint
    libraries: tuple[Part, ...] = ()  # of custom operators, beside the engine, which does not load without them
    builder: str  # version of the backend's package
    built_with: dict[str, str] = Field(
        default={}
    )  # further packages and their versions; "cuda": of the builder's package
    built: str | None = None  # when: UTC, as 2026-11-30T12:00:00+00:00
    platform: str  # as "linux-x86_64"
    gpu: str | None = None  # that it was built on
    # As "90": those that it runs on; with a GPU of another one it does not load.
    compute_capabilities: tuple[str, ...] = ()
    version_compatible: bool = False  # a newer TensorRT of the same package loads it, too
    hardware_compatible: str | None = None  # TensorRT's HardwareCompatibilityLevel, where it is not NONE
    kernel_abi: int | None = None  # of the plugins: see plugins_cuda/common/kernel_abi.h
    precision: Precision
    layers: Counts = Field(default={})  # those of weights by the type that they compute in
    plugins: Counts = Field(default={})  # custom operators by the type of their first input
    profiles: tuple[Profile, ...] = ()
    options: dict[str, Any] = Field(default={})  # that the builder was given
    seconds: float | None = None  # of the build
    network: Manifest  # categories, sizes, versions
    pixel_mean: tuple[float, float, float] | None = None  # RGB, 0 to 255; the graph normalises, a caller must not
    pixel_std: tuple[float, float, float] | None = None
    configuration: dict[str, Any] | None = None  # of the training run
    parity: tuple[ParityFigures, ...] = ()

    @property
    def served(self) -> Manifest:
        """The network's manifest, with no larger batch than a profile of this engine holds."""
        held = max((shapes["images"][2][0] for shapes in self.profiles if "images" in shapes), default=None)
        if held is None or held >= self.network.max_batch:
            return self.network
        return self.network.model_copy(update={"max_batch": held})

    def inputs(self) -> dict[str, Any]:
        """All that this engine was made of and with. Two engines of the same inputs differ in what a build leaves to
        chance."""
        return self.model_dump(mode="json", exclude={"engine", "bytes", "built", "seconds", "parity"})


def this_platform() -> str:
    """As `EngineManifest.platform` has it."""
    return f"{sys.platform}-{platform.machine()}"


def engine_manifest_path(engine: Path) -> Path:
    """model.plan -> model.plan.json beside it."""
    return engine.with_name(engine.name + ".json")


def backend_of(engine: Path) -> Backend | None:
    """Which backend's engine a file is, by its name's end; None where by none."""
    ends: dict[str, Backend] = {".rtx.plan": "tensorrt-rtx", ".plan": "tensorrt", ".pt2": "torch-tensorrt"}
    ends[".onnx"] = "onnxruntime"
    return next((backend for end, backend in ends.items() if engine.name.endswith(end)), None)


def record_parity(engine: Path, figures: Iterable[ParityFigures]) -> None:
    """Into the engine's manifest, in the place of what stood there. InputError where that is of another engine."""
    path = engine_manifest_path(engine)
    manifest = EngineManifest.load(path)
    if sha256(engine) != manifest.engine.sha256:
        raise InputError(f"{engine}: not the engine that {path.name} describes{manifest.cure}")
    manifest.model_copy(update={"parity": tuple(figures)}).save(path)
