"""A plan that is loaded: its inputs and outputs, and the profile that holds a shape."""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from upsnet.errors import InputError
from upsnet.files import user_cache, write_bytes, writing
from upsnet.tensorrt.api import (
    NUMPY_TYPES,
    Api,
    compiled_kernels,
    described,
    make_config,
    make_logger,
    make_runtime,
    stream_weights,
    take_errors,
)
from upsnet.tensorrt.cuda import Cuda

logger = logging.getLogger("upsnet")

Shape = tuple[int, ...]


class Tensor(NamedTuple):
    """One input or output. shape: -1 where it is dynamic."""

    name: str
    kind: np.dtype[Any]
    shape: Shape


class Bounds(NamedTuple):
    """What an input may be in a profile."""

    low: Shape
    usual: Shape
    high: Shape

    def hold(self, shape: Shape) -> bool:
        return len(shape) == len(self.low) and all(
            low <= size <= high for low, size, high in zip(self.low, shape, self.high, strict=True)
        )


class Engine:
    """A deserialised plan on one GPU, with what it needs: its runtime and its logger.

    All of it is made inside `with cuda.current():`, where `close` has to be called, too, after its contexts are gone.
    InputError, with TensorRT's own words, where it does not load, and where an input or output is none that NumPy has.
    """

    def __init__(self, api: Api, cuda: Cuda, plan: Path, host_code: bool = False, plugins: Path | None = None) -> None:
        """host_code: whether code in the plan may run, as that of a version-compatible one. plugins: their library."""
        self.api, self.cuda, self.plan, self.logger = api, cuda, plan, make_logger(api)
        self.engine: Any = None
        self.config: Any = None
        self.runtime: Any = make_runtime(api, self.logger, host_code, plugins)
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    def _load(self) -> None:
        api, content = self.api, self.plan.read_bytes()
        self.engine = self.runtime.deserialize_cuda_engine(content)
        if self.engine is None:
            raise self.error(f"{api.title} {api.version} does not load it")
        stream_weights(self.engine)
        self._kernels = Kernels(api, content, self.cuda.name)
        self.config = make_config(api, self.engine, self._kernels.kept)
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        mode = api.module.TensorIOMode.INPUT
        self.inputs = [self._tensor(name) for name in names if self.engine.get_tensor_mode(name) == mode]
        self.outputs = [self._tensor(name) for name in names if self.engine.get_tensor_mode(name) != mode]
        self.profiles = [self._profile(index) for index in range(self.engine.num_optimization_profiles)]

    def _tensor(self, name: str) -> Tensor:
        kind = self.engine.get_tensor_dtype(name)
        try:
            numpy_kind = np.dtype(NUMPY_TYPES[kind.name])
        except KeyError:
            raise InputError(f"{self.plan}: {name} is {kind.name}, a type that this runtime does not have") from None
        if self.engine.get_tensor_location(name) != self.api.module.TensorLocation.DEVICE:
            raise InputError(
                f"{self.plan}: {name} lies in the host's memory; build the engine again with `make engine`"
            )
        return Tensor(name, numpy_kind, tuple(self.engine.get_tensor_shape(name)))

    def _profile(self, index: int) -> dict[str, Bounds]:
        found = {each.name: self.engine.get_tensor_profile_shape(each.name, index) for each in self.inputs}
        return {name: Bounds(*(tuple(shape) for shape in shapes)) for name, shapes in found.items()}

    def find_profile(self, shapes: Sequence[Shape]) -> int | None:
        """Of those that hold these shapes of the inputs, the one whose usual shape is nearest in size; None: none."""
        names = [each.name for each in self.inputs]

        def distance(index: int) -> int:
            return abs(math.prod(self.profiles[index][names[0]].usual) - math.prod(shapes[0]))

        held = [
            index
            for index, profile in enumerate(self.profiles)
            if all(profile[name].hold(shape) for name, shape in zip(names, shapes, strict=True))
        ]
        return min(held, key=distance, default=None)

    def error(self, what: str) -> InputError:
        """What happened, and what TensorRT's log has about it."""
        return InputError(f"{self.plan}: {what}: {described(take_errors(self.logger))}")

    def close(self) -> None:
        """A second call does nothing."""
        if self.config is not None:
            self._kernels.keep(compiled_kernels(self.config))
        self.config = None
        self.engine = None
        self.runtime = None


class Kernels:
    """What TensorRT-RTX has compiled for a plan on a kind of GPU, in a file of the user's cache. TensorRT has none."""

    def __init__(self, api: Api, plan: bytes, gpu: str) -> None:
        folder = user_cache() if api.captures_itself else None
        name = (
            f"kernels-{api.version}-{hashlib.sha256(plan).hexdigest()[:16]}-{re.sub(r'[^0-9A-Za-z]+', '-', gpu)}.cache"
        )
        self._file = folder / name if folder else None
        self.kept = b""
        if self._file is not None and self._file.is_file():
            with suppress(OSError):
                self.kept = self._file.read_bytes()

    def keep(self, content: bytes) -> None:
        """Nothing depends on it: where it cannot be written, the next process compiles again."""
        if self._file is None or content in (b"", self.kept):
            return
        try:
            with writing(self._file):
                self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_bytes(self._file, content)
        except InputError as error:
            logger.debug("the compiled kernels are not kept: %s", error)
