"""The manifest of an engine: a JSON beside it that says what it is, what it was made from and where it runs."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StringConstraints, model_validator

from upsnet.contract import CUDA_LIBRARY, INPUTS, LIBRARY, PLUGINS
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
MOST = 2**31 - 1  # of anything that is counted here but bytes
DEEPEST = 32  # lists and objects in each other, in what is written here as it came
Name = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Count = Annotated[int, Field(strict=True, ge=0, le=MOST)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Shape = tuple[Count, ...]
Profile = dict[str, tuple[Shape, Shape, Shape]]  # input -> its smallest, usual and largest shape
Counts = dict[str, dict[str, Count]]  # name -> type -> how many
RANKS = dict(zip(INPUTS, (4, 2, 1), strict=True))  # of a profile's shapes


class Part(BaseModel):
    """A file, by its name alone where it lies beside the engine."""

    model_config = ConfigDict(frozen=True)

    file: Name
    sha256: str = Field(pattern="^[0-9a-f]{64}$")

    @classmethod
    def of(cls, path: Path, name: str | None = None) -> Part:
        return cls(file=name or path.name, sha256=sha256(path))


class ParityFigures(BaseModel):
    """What `upsnet parity` found for this engine, at one batch size."""

    model_config = ConfigDict(frozen=True)

    data: str
    images: Count
    batch: Count
    reference: str  # a runtime
    pq: Share
    difference: float = Field(ge=-1, le=1)  # of PQ to the reference's
    identical: Share  # of the pixels


class EngineManifest(Report, Sparse):
    """One engine. What a backend does not have is None or empty; an older version of this project left out some keys.

    Values that no build writes are refused, and keys that contradict each other: custom operators of a plan without
    their library, and an engine for GPUs without a profile.
    """

    cure: ClassVar[str] = "; build the engine again with `make engine`"

    backend: Backend
    engine: Part
    bytes: int = Field(strict=True, gt=0, lt=2**63)
    model: Part  # what it was built from: an ONNX file, or a checkpoint
    libraries: tuple[Part, ...] = ()  # of custom operators, beside the engine, which does not load without them
    builder: Name  # version of the backend's package
    built_with: dict[str, str] = Field(
        default={}
    )  # further packages and their versions; "cuda": of the builder's package
    # When: UTC, as 2026-11-30T12:00:00+00:00
    built: str | None = Field(default=None, pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\+00:00$")
    platform: Name  # as "linux-x86_64"
    gpu: Name | None = None  # that it was built on
    # As "90": those that it runs on; with a GPU of another one it does not load.
    compute_capabilities: tuple[Annotated[str, Field(pattern="^[1-9][0-9]{1,2}$")], ...] = ()
    version_compatible: StrictBool = False  # a newer TensorRT of the same package loads it, too
    hardware_compatible: Name | None = None  # TensorRT's HardwareCompatibilityLevel, where it is not NONE
    kernel_abi: int | None = Field(
        default=None, strict=True, gt=0, le=MOST
    )  # of the plugins: see plugins_cuda/common/kernel_abi.h
    precision: Precision
    layers: Counts = Field(default={})  # those of weights by the type that they compute in
    plugins: Counts = Field(default={})  # custom operators by the type of their first input
    profiles: tuple[Profile, ...] = ()
    options: dict[str, Any] = Field(default={})  # that the builder was given
    seconds: float | None = Field(default=None, ge=0, allow_inf_nan=False)  # of the build
    network: Manifest  # categories, sizes, versions
    pixel_mean: tuple[Number, Number, Number] | None = None  # RGB, 0 to 255; the graph normalises, a caller must not
    pixel_std: tuple[Number, Number, Number] | None = None
    configuration: dict[str, Any] | None = None  # of the training run
    parity: tuple[ParityFigures, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> EngineManifest:
        needed = LIBRARIES[self.backend] if self.backend != "onnxruntime" else ()  # that one's kernels are a server's
        if self.plugins and needed and not self.libraries:
            raise ValueError(f"plugins are {', '.join(self.plugins)}, and libraries has no {needed[0]}")
        files = [part.file for part in self.libraries]
        if len(files) != len(set(files)):
            raise ValueError(f"libraries names one twice: {', '.join(files)}")
        if self.backend != "onnxruntime" and not self.profiles:
            raise ValueError(f"profiles is empty, and an engine of {self.backend} has one at least")
        for profile in self.profiles:
            for name, shapes in profile.items():
                if any(len(shape) != RANKS.get(name, len(shape)) for shape in shapes):
                    raise ValueError(f"profiles: a shape of {name} has {RANKS[name]} numbers")
        for key in ("options", "configuration"):
            if not _shallow(getattr(self, key), DEEPEST):
                raise ValueError(f"{key} is deeper than {DEEPEST} lists and objects in each other")
        return self

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


def _shallow(value: object, levels: int) -> bool:
    """Whether no more than so many lists and objects are in each other: what is deeper cannot be written again."""
    if isinstance(value, dict | list | tuple):
        inner = value.values() if isinstance(value, dict) else value
        return levels > 0 and all(_shallow(each, levels - 1) for each in inner)
    return True


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
