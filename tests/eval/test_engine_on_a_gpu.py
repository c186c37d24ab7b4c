"""The real TensorRT on a real GPU: numbers, graphs, threads and memory. Everywhere else the fakes stand in for it."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from export.building import build_engine, find_plugins
from upsnet.datasets.validation_set import open_dataset
from upsnet.engines.manifest import ENGINES
from upsnet.errors import InputError
from upsnet.parity.pixels import identical_pixels
from upsnet.result import PanopticResult
from upsnet.runtimes.open import open_runtime
from upsnet.runtimes.options import RuntimeOptions
from upsnet.runtimes.predictor import Predictor, predict_photos
from upsnet.tensorrt.api import Name, installed
from upsnet.tensorrt.cuda import Cuda, problem_with_gpu

pytestmark = [pytest.mark.gpu, pytest.mark.tensorrt]


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The tiny network's plan, built here."""
    name: Name = request.param
    if problem := problem_with_gpu():
        pytest.skip(f"no NVIDIA GPU: {problem}")
    if installed(name) is None:
        pytest.skip(f"{name} is not installed")
    if find_plugins(None) is None:
        pytest.skip("no plugins: make plugins")
    tiny_run: Path = request.getfixturevalue("tiny_run")
    for file in ("model.onnx", "model.manifest.json"):
        shutil.copyfile(tiny_run / file, tmp_path / file)
    build_engine(tmp_path / "model.onnx", tmp_path / "engine", backend=name)
    return tmp_path / "engine" / ENGINES[name]


def free_memory() -> int:
    cuda = Cuda(0)
    with cuda.current():
        return int(cuda.call("MemGetInfo")[0])


def test_it_agrees_with_onnx_runtime_and_frees_its_memory(engine: Path, request: pytest.FixtureRequest) -> None:
    tiny_run: Path = request.getfixturevalue("tiny_run")
    data = open_dataset(tiny_run.parent / "shapes/val.json")
    photos = [data.read(record)[0] for record in data.records]
    photos += [photo[:, : photo.shape[1] // 2] for photo in photos]
    batches = [photos[index : index + 1 + index % 3] for index in range(len(photos))]
    with closing(open_runtime(RuntimeOptions(engine.parent, "onnxruntime", device="cpu"))) as predictor:
        wanted = [predict_photos(predictor, batch) for batch in batches]
    try:
        opened: Predictor = open_runtime(RuntimeOptions(engine=engine))
    except InputError as error:
        if "compute" in str(error):
            pytest.skip(str(error))  # TensorRT-RTX is not for every GPU
        raise
    with closing(opened) as predictor:
        before = free_memory()
        for _ in range(3):  # the third time as a CUDA graph
            compare(wanted, [predict_photos(predictor, batch) for batch in batches])
        with ThreadPoolExecutor(8) as pool:
            compare(wanted * 4, list(pool.map(lambda batch: predict_photos(predictor, batch), batches * 4)))
        held = before - free_memory()
    assert free_memory() >= before - held // 10, "all but what CUDA keeps for itself is free again"


def compare(wanted: list[list[PanopticResult]], found: list[list[PanopticResult]]) -> None:
    same = [
        identical_pixels(left, right).mean()
        for one, other in zip(wanted, found, strict=True)
        for left, right in zip(one, other, strict=True)
    ]
    assert np.mean(same) > 0.999
