"""Stand-ins for what builds engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from export import building
from export.backends.backend import Backend, Job
from export.backends.onnx_runtime import OnnxRuntime
from export.outcome import Outcome
from upsnet.contract import PLUGINS
from upsnet.engines import manifest as engines

NAMES: tuple[engines.Backend, ...] = ("tensorrt", "tensorrt-rtx", "torch-tensorrt")


class StandIn:
    """A backend that comes to this outcome; or that is not there, without one. `jobs`: those that it was given.

    As all that build for GPUs it has profiles, besides `options`; a library lies beside a plan with plugins.
    """

    def __init__(self, name: engines.Backend, outcome: Outcome | None = None, options: frozenset[str] = frozenset()):
        self.name, self.outcome, self.options = name, outcome, options | {"profiles"}
        self.content = b"plan"
        self.jobs: list[Job] = []

    def available(self) -> str | None:
        return None if self.outcome else f"{self.name} is a stand-in"

    def source(self, job: Job) -> Path | str:
        return job.model

    def build(self, job: Job, source: Path) -> Outcome:
        assert self.outcome is not None
        self.jobs.append(job)
        if self.outcome.status == "built":
            (job.folder / engines.ENGINES[self.name]).write_bytes(self.content)
            if self.outcome.plugins and PLUGINS in engines.LIBRARIES[self.name]:
                library = b"plugins" if job.plugins is None else job.plugins.read_bytes()
                (job.folder / PLUGINS).write_bytes(library)
        return self.outcome


def put_in_place(monkeypatch: pytest.MonkeyPatch, *given: Backend) -> None:
    """ONNX Runtime's backend as it is (or as given), of the others these alone."""
    by_name = {each.name: each for each in given}
    first = by_name.pop("onnxruntime", OnnxRuntime())
    others = (by_name.get(name) or StandIn(name) for name in NAMES)
    monkeypatch.setattr(building, "BACKENDS", (first, *others))
