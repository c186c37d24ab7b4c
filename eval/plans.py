"""A TensorRT plan as the workshop looks at it: all its outputs, its layers and their times, and its ONNX file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from upsnet.contract import INPUTS
from upsnet.device import AUTO, parse_device
from upsnet.engines.manifest import EngineManifest
from upsnet.errors import InputError
from upsnet.files import sha256
from upsnet.geometry import NetworkBatch
from upsnet.tensorrt.api import Name, layer_information, make_profiler, open_api
from upsnet.tensorrt.cuda import Cuda
from upsnet.tensorrt.engine import Engine
from upsnet.tensorrt.lane import Lane


class Plan:
    """For one caller. `report`, where it is given, is told every layer's name and milliseconds of every call."""

    def __init__(
        self,
        plan: Path,
        package: Name,
        plugins: Path | None,
        host_code: bool = False,
        device: str | None = None,
        report: Callable[[str, float], None] | None = None,
    ) -> None:
        """InputError where it cannot be loaded here."""
        api, wanted = open_api(package), parse_device(device or AUTO)
        self.path, self._cuda = plan, Cuda.open(wanted)
        self.device_name = f"{wanted._replace(kind='cuda')} ({self._cuda.name})"
        with self._cuda.current():
            self._engine = Engine(api, self._cuda, plan, host_code, plugins)
            try:
                self._lane = Lane(self._engine, None if report is None else make_profiler(api, report))
            except BaseException:
                self._engine.close()
                raise

    @property
    def gpu(self) -> str:
        """Its name, as "NVIDIA H200"."""
        return str(self._cuda.name)

    @property
    def outputs(self) -> list[str]:
        return [each.name for each in self._engine.outputs]

    def layers(self) -> list[dict[str, Any]]:
        """See `layer_information`."""
        with self._cuda.current():
            return layer_information(self._engine.api, self._engine.engine)

    def run(self, batch: NetworkBatch) -> dict[str, np.ndarray]:
        """Every output by its name. InputError for a batch that no profile of the plan holds."""
        given = dict(zip(INPUTS, batch, strict=True))
        arrays = [np.ascontiguousarray(given[each.name]) for each in self._engine.inputs]
        profile = self._engine.find_profile([each.shape for each in arrays])
        if profile is None:
            raise InputError(f"{self.path}: none of its profiles holds a batch of {list(batch.images.shape)}")
        with self._cuda.current():
            return dict(zip(self.outputs, self._lane.run(arrays, profile), strict=True))

    def close(self) -> None:
        with self._cuda.current():
            self._lane.close()
            self._engine.close()


def libraries_of(plan: Path, described: EngineManifest) -> Path | None:
    """The library of plugins beside the plan."""
    names: Sequence[str] = [each.file for each in described.libraries]
    return plan.with_name(names[0]) if names else None


def source_of(plan: Path, described: EngineManifest) -> Path | None:
    """The ONNX file that the plan was built from, where it lies beside it or one folder up, unchanged."""
    names = (described.model.file, "model.onnx", "model.tensorrt.onnx")
    near = [folder / name for folder in (plan.parent, plan.resolve().parent.parent) for name in names]
    return next((path for path in near if path.is_file() and sha256(path) == described.model.sha256), None)
