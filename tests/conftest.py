"""Fixtures that every test folder uses."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def project_root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real photos and official PQ results that live beside the project; absent on most machines."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the shared data folder {folder.parent.name}/{folder.name} beside the project")
    return folder


@pytest.fixture(scope="session")
def triton_environment() -> Path:
    """The virtual environment that holds the real Triton server."""
    from panoptic.errors import InputError
    from serving.server import Environment

    try:
        return Environment.find(None).folder
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as `make demo` makes it, at the size of a test: two photos learned by heart, exported, its engine built."""
    from export.engine import build_engine
    from export.onnx_export import export_onnx
    from training.config import load_config
    from training.data.shapes import write_shapes
    from training.loop import train

    folder = tmp_path_factory.mktemp("tiny")
    data = write_shapes(folder / "shapes", {"train": 2, "val": 4}, progress=False)
    splits = [
        f"data.{name}.{key}={data / path}"
        for name in ("train", "val")
        for key, path in (("json_file", f"{name}.json"), ("segments", f"panoptic_{name}"), ("images", name))
    ]
    schedule = {"iterations": 80, "images_per_step": 2, "warmup": 10, "evaluate_every": 0, "log_every": 10}
    steps = [f"schedule.{key}={value}" for key, value in schedule.items()]
    overrides = [*splits, *steps, "name=tiny", "data.augment.flip=0"]
    config = load_config(ROOT / "training/configs/demo.yaml", tuple(overrides))
    run = folder / "run"
    assert train(config, run, "cpu") == 0
    export_onnx(run / "last.pt", run / "model.onnx")
    build_engine(run / "model.onnx", run / "engine")
    return run
