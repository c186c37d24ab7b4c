"""TensorRT's and TensorRT-RTX's engines, in process."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np

from upsnet.contract import INPUTS, OUTPUTS
from upsnet.device import parse_device
from upsnet.engines.check import check_engine
from upsnet.engines.profiles import bounds
from upsnet.errors import InputError
from upsnet.geometry import NetworkBatch
from upsnet.runtimes.predictor import RawPrediction
from upsnet.tensorrt.api import Name, open_api
from upsnet.tensorrt.cuda import Cuda, CudaError
from upsnet.tensorrt.engine import Engine
from upsnet.tensorrt.lane import Lane

MOST_LANES = 4  # calls at a time; more wait, the GPU is busy
KINDS = {  # of the contract: see upsnet/contract.py
    "images": "uint8", "sizes": "int32", "scales": "float32",
    "panoptic": "uint8", "segments": "float32", "segment_count": "int32",
}  # fmt: skip


class TensorRTPredictor:
    """Runs a plan. Several threads may use it: each call has a context, a stream and memory of its own, of which there
    are as many as calls at a time, at most MOST_LANES.

    device: see upsnet/device.py; "auto" is the first GPU, as TensorRT has no other. InputError, with the cure, for an
    engine that is not what its manifest says or cannot run here, and later for a batch that no profile holds.

    What it holds on the GPU is freed by `close`, else when nobody refers to it any more, else as the process ends.
    """

    name: Name = "tensorrt"

    def __init__(self, engine: Path, device: str = "auto") -> None:
        self.engine_path = Path(engine)
        wanted = parse_device(device)
        described = check_engine(self.engine_path, wanted.number)
        if described.backend != self.name:
            raise InputError(f"{engine}: an engine of {described.backend}; --runtime {described.backend} runs it")
        self.manifest = described.served
        api = open_api(self.name)
        try:
            self._cuda = Cuda.open(wanted)
        except CudaError as error:
            raise InputError(f"{engine}: {error}; --runtime onnxruntime takes the CPU") from None
        self.device_name = f"{wanted._replace(kind='cuda')} ({self._cuda.name})"
        libraries = [self.engine_path.with_name(each.file) for each in described.libraries]
        self.kernels = ", ".join(each.name for each in libraries) or "none"
        self._process = os.getpid()
        self._idle: list[Lane] = []
        self._busy: dict[object, Lane | None] = {}  # by the call; None while the lane is made
        self._changed = threading.Condition()
        library = libraries[0] if libraries else None
        with self._cuda.current():
            opened = Engine(api, self._cuda, self.engine_path, described.version_compatible, library)
            try:
                self._check_contract(opened)
            except BaseException:
                opened.close()
                raise
        self._engine: Engine | None = opened
        self._free = weakref.finalize(self, free, self._process, self._cuda, self._idle, opened)

    @property
    def _lanes(self) -> int:
        return len(self._idle) + len(self._busy)

    def _check_contract(self, engine: Engine) -> None:
        for kind, found, wanted in (("inputs", engine.inputs, INPUTS), ("outputs", engine.outputs, OUTPUTS)):
            shown = {each.name: str(each.kind) for each in found}
            if shown != {name: KINDS[name] for name in wanted}:
                listed = ", ".join(f"{name} {each}" for name, each in shown.items())
                raise InputError(
                    f"{self.engine_path}: not an engine of this version: its {kind} are {listed}; export the model and "
                    "build the engine again with `make onnx engine`"
                )

    def predict(self, batch: NetworkBatch) -> RawPrediction:
        """InputError for a batch that no profile of the engine holds, one of other types, and when TensorRT fails."""
        if os.getpid() != self._process:
            raise InputError(
                f"{self.engine_path}: opened in another process: CUDA does not outlive a fork; load it here"
            )
        engine = self._opened()
        given = dict(zip(INPUTS, (np.asarray(each) for each in batch), strict=True))
        arrays = [given[each.name] for each in engine.inputs]
        profile = self._find_profile(engine, arrays)
        with self._cuda.current(), self._lane() as lane:
            answer = lane.run(arrays, profile)
        found = dict(zip((each.name for each in engine.outputs), answer, strict=True))
        return RawPrediction(*(found[name] for name in OUTPUTS))

    def _opened(self) -> Engine:
        if self._engine is None:
            raise InputError(f"{self.engine_path}: the engine is closed; load it again")
        return self._engine

    def _find_profile(self, engine: Engine, arrays: list[np.ndarray]) -> int:
        for tensor, array in zip(engine.inputs, arrays, strict=True):
            if array.dtype != tensor.kind:
                raise InputError(f"{tensor.name} is {array.dtype}, and the network takes {tensor.kind}")
        profile = engine.find_profile([array.shape for array in arrays])
        if profile is not None:
            return profile
        images = dict(zip((each.name for each in engine.inputs), arrays, strict=True))["images"]
        size, height, width = images.shape[:3]
        profiles = ({name: (each.low, each.usual, each.high) for name, each in one.items()} for one in engine.profiles)
        raise InputError(
            f"{self.engine_path}: a batch of {size} at {height} x {width} is in none of its profiles, which hold "
            f"{'; '.join(map(bounds, profiles))}: build an engine whose profile holds it (`upsnet engine`), or take "
            "the runtime onnxruntime"
        )

    @contextmanager
    def _lane(self) -> Iterator[Lane]:
        """A lane that nobody else has meanwhile. One in which a call failed is closed: nobody takes it again."""
        call, broken = object(), True
        try:
            yield self._enter(call)
            broken = False
        finally:  # also where Ctrl-C came inside `_enter`
            self._leave(call, broken)

    def _enter(self, call: object) -> Lane:
        """An idle lane, a new one, or the next one that is left."""
        with self._changed:
            while True:
                engine = self._opened()
                if self._idle:
                    lane = self._busy[call] = self._idle[-1]  # noted as the call's before it leaves the list
                    self._idle.remove(lane)
                    return lane
                if self._lanes < MOST_LANES:
                    self._busy[call] = None
                    lane = self._busy[call] = Lane(engine)
                    return lane
                self._changed.wait()

    def _leave(self, call: object, broken: bool) -> None:
        with self._changed:
            lane = self._busy.pop(call, None)
            self._changed.notify_all()
            if lane is None:
                return
            if lane in self._idle:
                self._idle.remove(lane)
            if broken:
                with suppress(InputError):
                    lane.close()
            else:
                self._idle.append(lane)

    def close(self) -> None:
        """Waits for the calls that are under way, then frees all. A second call does nothing, nor does one in a process
        that was forked, where nothing of it can be touched."""
        if os.getpid() != self._process:
            return
        with self._changed:
            self._engine = None
            self._changed.notify_all()
            while self._busy:
                self._changed.wait()
            self._free()


def free(process: int, cuda: Cuda, lanes: list[Lane], engine: Engine) -> None:
    """Whatever a predictor of that process holds; in a fork of it nothing."""
    if os.getpid() != process:
        return
    with ExitStack() as stack:
        with suppress(CudaError):  # where CUDA has failed for good
            stack.enter_context(cuda.current())
        while lanes:
            lanes.pop().close()
        engine.close()


class TensorRTRTXPredictor(TensorRTPredictor):
    name: Name = "tensorrt-rtx"
