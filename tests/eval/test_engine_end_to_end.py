"""From a trained run to an engine of TensorRT's, and through every command that runs one: with the fakes of
tests/upsnet/tensorrt in the place of TensorRT and CUDA, in this process and in the builder's."""

from __future__ import annotations

import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import upsnet
from export.building import build_engine
from tests.upsnet.tensorrt.fake_tensorrt import PLUGIN_NAMES, World, environment, install, write_plugins
from upsnet.contract import PLUGINS
from upsnet.datasets.validation_set import open_dataset
from upsnet.driver import Driver
from upsnet.engines.manifest import EngineManifest
from upsnet.files import read_json
from upsnet.runtimes.open import open_runtime
from upsnet.runtimes.options import RuntimeOptions
from upsnet.runtimes.predictor import Predictor, predict_photos


@pytest.fixture(params=["11.1", "rtx"])
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, value in environment(request.param, capability=(8, 9)).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("export.backends.tensorrt_engine.gpu_problem", lambda: None)
    monkeypatch.setattr("export.building.gpu_problem", lambda: None)
    monkeypatch.setattr("upsnet.engines.check.find_driver", lambda: Driver("no GPU"))
    return install(monkeypatch, request.param, capability=(8, 9))


@pytest.fixture
def run(world: World, tiny_run: Path, tmp_path: Path) -> Path:
    """The trained run, with the engine that `upsnet engine` builds of it."""
    folder = tmp_path / "run"
    folder.mkdir()
    for path in tiny_run.iterdir():
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    backend: Any = "tensorrt-rtx" if world.flavour.rtx else "tensorrt"
    engine = build_engine(folder / "model.onnx", folder / "engine", write_plugins(tmp_path / PLUGINS), backend)
    assert engine.chosen == backend
    return folder


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["upsnet", *map(str, words)])
    try:
        upsnet.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_every_command_runs_the_engine(
    run: Path, tiny_run: Path, world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "tensorrt-rtx" if world.flavour.rtx else "tensorrt"
    truth = ["--gt-json", tiny_run.parent / "shapes/val.json"]
    monkeypatch.setenv("UPSNET_TRITON_ENV", "/nowhere")
    assert command(monkeypatch, "parity", "--run", run, *truth, "--batch-sizes", 1, 2, "--min-identical", 0.999) == 0
    out, err = capsys.readouterr()
    left_out = re.findall(r"^(.*) is left out: ", err, re.MULTILINE)
    other = "TensorRT" if world.flavour.rtx else "TensorRT-RTX"
    assert left_out == ["ONNX Runtime with TensorRT", other, "Torch-TensorRT", "Triton"]
    parity = read_json(run / "parity.json")
    assert parity["runtimes"] == ["pytorch", "onnxruntime", name] and parity["equal"]
    plan = run / "engine" / ("model.rtx.plan" if world.flavour.rtx else "model.plan")
    assert f"wrote the figures into {plan}.json, too" in out and "engine/model.onnx.json, too" in out
    for engine in (plan, run / "engine/model.onnx"):
        figures = EngineManifest.load(engine.with_name(f"{engine.name}.json")).parity
        assert [(each.batch, each.images, each.reference) for each in figures] == [(1, 4, "pytorch"), (2, 4, "pytorch")]
        own = "onnxruntime" if engine.suffix == ".onnx" else name
        rows = [row for row in parity["columns"] if row["runtime"] == own]
        assert [(each.pq, each.identical) for each in figures] == [
            (row["results"]["All"]["pq"], row["identical"]) for row in rows
        ]

    photos = sorted((tiny_run.parent / "shapes/val").iterdir())
    assert command(monkeypatch, "predict", "--run", run / "engine", "--out", run / "out", photos[0]) == 0
    assert f"({name}, device: cuda:0 (Fake GPU), kernels: {PLUGINS})" in capsys.readouterr().out
    words = ["eval", "--engine", plan, "--runtime", name, *truth, "--run", run, "--out", run / "eval"]
    assert command(monkeypatch, *words) == 0
    assert read_json(run / "eval/pq.json")["runtime"] == name
    bench = ["bench", "--run", run, *truth, "--runtimes", name, "--rounds", 1, "--batch-sizes", 1, "--threads", 1]
    assert command(monkeypatch, *bench) == 0
    assert list(read_json(run / "bench.json")["batches"][0]["median_ms"]) == [name]
    assert command(monkeypatch, "bench", "--photo", photos[0], "--engine", plan) == 0
    assert command(monkeypatch, "predict", "--engine", plan, "--device", "cpu", "--out", run / "x", photos[0]) == 2
    assert "device cpu: TensorRT computes on a GPU alone" in capsys.readouterr().err and not (run / "x").exists()
    assert world.cuda.held() == [] and world.cuda.misuses == []


@pytest.mark.parametrize("world", ["11.1"], indirect=True)
def test_threads_shapes_and_batches_agree_with_onnx_runtime(run: Path, tiny_run: Path, world: World) -> None:
    shapes = open_dataset(tiny_run.parent / "shapes/val.json")
    photos = [shapes.read(record)[0] for record in shapes.records]
    photos += [photo[:, : photo.shape[1] // 2] for photo in photos] + [photo[: photo.shape[0] // 2] for photo in photos]
    name = "tensorrt-rtx" if world.flavour.rtx else "tensorrt"
    options = RuntimeOptions(run)
    onnx = open_runtime(options._replace(runtime="onnxruntime"))
    engine = open_runtime(options._replace(runtime=name))

    def answers(predictor: Predictor, batch: list[np.ndarray]) -> list[np.ndarray]:
        return [result.ids for result in predict_photos(predictor, batch)]

    batches = [photos[index : index + 1 + index % 3] for index in range(len(photos))]
    wanted = [answers(onnx, batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda batch: answers(engine, batch), batches * 2))
    for batch, own in zip(wanted * 2, found, strict=True):
        for left, right in zip(batch, own, strict=True):
            assert (left == right).mean() > 0.999
    onnx.close()
    engine.close()
    assert world.cuda.held() == [] and world.cuda.misuses == []


def test_every_operator_of_the_graph_is_a_plugin_of_the_fake(tiny_run: Path) -> None:
    import onnx

    graph = onnx.load(tiny_run / "model.onnx").graph
    assert {node.op_type for node in graph.node if node.domain == "upsnet"} <= set(PLUGIN_NAMES)
