"""TensorRT's and TensorRT-RTX's engines, in process."""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack, suppress
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
    """

    name: Name = "tensorrt"

    def __init__(self, engine: Path, device: str = "auto") -> None:
        self.engine_path = Path(engine)
        wanted = parse_device(device)
        described = check_engine(self.engine_path, wanted.number)
        if described.backend != self.name:
            raise InputError(f"{engine}: an engine of {described.backend}; --runtime {described.backend} runs it")
        self.manifest = described.served
        api, self._cuda = open_api(self.name), Cuda.open(wanted)
        self.device_name = f"{wanted._replace(kind='cuda')} ({self._cuda.name})"
        libraries = [self.engine_path.with_name(each.file) for each in described.libraries]
        self.kernels = ", ".join(each.name for each in libraries) or "none"
        self._process = os.getpid()
        self._idle: list[Lane] = []
        self._lanes = 0
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
        with self._cuda.current():
            lane, engine = self._enter()
            try:
                given = dict(zip(INPUTS, (np.asarray(each) for each in batch), strict=True))
                arrays = [given[each.name] for each in engine.inputs]
                profile = self._find_profile(engine, arrays)
                found = dict(zip((each.name for each in engine.outputs), lane.run(arrays, profile), strict=True))
            except BaseException as error:
                self._leave(lane, broken=not isinstance(error, Refused))
                raise
            self._leave(lane)
        return RawPrediction(*(found[name] for name in OUTPUTS))

    def _find_profile(self, engine: Engine, arrays: list[np.ndarray]) -> int:
        for tensor, array in zip(engine.inputs, arrays, strict=True):
            if array.dtype != tensor.kind:
                raise Refused(f"{tensor.name} is {array.dtype}, and the network takes {tensor.kind}")
        profile = engine.find_profile([array.shape for array in arrays])
        if profile is not None:
            return profile
        images = dict(zip((each.name for each in engine.inputs), arrays, strict=True))["images"]
        size, height, width = images.shape[:3]
        profiles = ({name: (each.low, each.usual, each.high) for name, each in one.items()} for one in engine.profiles)
        raise Refused(
            f"{self.engine_path}: a batch of {size} at {height} x {width} is in none of its profiles, which hold "
            f"{'; '.join(map(bounds, profiles))}: build an engine whose profile holds it (`upsnet engine`), or take "
            "the runtime onnxruntime"
        )

    def _enter(self) -> tuple[Lane, Engine]:
        """A lane that nobody else has: an idle one, a new one, or the next one that is left."""
        with self._changed:
            while True:
                if self._engine is None:
                    raise InputError(f"{self.engine_path}: the engine is closed; load it again")
                if self._idle:
                    return self._idle.pop(), self._engine
                if self._lanes < MOST_LANES:
                    lane = Lane(self._engine)
                    self._lanes += 1
                    return lane, self._engine
                self._changed.wait()

    def _leave(self, lane: Lane, broken: bool = False) -> None:
        """broken: nobody takes it again."""
        if broken:
            with suppress(InputError):
                lane.close()
        with self._changed:
            if broken:
                self._lanes -= 1
            else:
                self._idle.append(lane)
            self._changed.notify_all()

    def close(self) -> None:
        """Waits for the calls that are under way, then frees all. A second call does nothing, nor does one in a process
        that was forked, where nothing of it can be touched."""
        if os.getpid() != self._process:
            return
        with self._changed, ExitStack() as stack:
            engine, self._engine = self._engine, None
            if engine is None:
                return
            self._changed.notify_all()
            while len(self._idle) < self._lanes:
                self._changed.wait()
            with suppress(CudaError):  # where CUDA has failed for good
                stack.enter_context(self._cuda.current())
            while self._idle:
                self._idle.pop().close()
            engine.close()
            self._lanes = 0


class TensorRTRTXPredictor(TensorRTPredictor):
    name: Name = "tensorrt-rtx"


class Refused(InputError):
    """Before anything was done with a batch."""
