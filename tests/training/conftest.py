"""Fixtures of the training loop's tests: a data set of a few pictures, a run that nothing has interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.child_processes import ChildProcesses
from tests.training.tiny_network import settings, tiny
from training.config import load_config
from training.loop import train
from training.model_config import ModelConfig
from upsnet.datasets.shapes import write_shapes


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    return write_shapes(folder, {"train": 6, "val": 3}, sizes=[(64, 64), (64, 96)], progress=False)


@pytest.fixture(scope="session")
def small(project_root: Path) -> ModelConfig:
    """The demo's network."""
    return load_config(project_root / "training/configs/shapes.yaml").model


@pytest.fixture(scope="session")
def unbroken(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "unbroken"
    assert train(settings(shapes), out, "cpu", tiny()) == 0
    return out


@pytest.fixture(scope="session")
def children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChildProcesses]:
    children = ChildProcesses(tmp_path_factory.mktemp("jobs"))
    yield children
    children.close()
