"""What TensorRT's runtime refuses, what it frees then, and what `upsnet.load` opens."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest

import upsnet
from tests.upsnet.tensorrt.engines import SHAPES, Make, same
from tests.upsnet.tensorrt.fake_cuda import cudaError_t
from tests.upsnet.tensorrt.fake_tensorrt import World, write_plugins
from tests.upsnet.tensorrt.graphs import make_batch
from upsnet.contract import PLUGINS
from upsnet.engines.manifest import EngineManifest, Part, engine_manifest_path
from upsnet.errors import InputError
from upsnet.runtimes.tensorrt import TensorRTPredictor, TensorRTRTXPredictor

# What it refuses


def test_a_batch_in_no_profile_is_one_line_and_the_next_one_runs(predictor: TensorRTPredictor, world: World) -> None:
    for batch in (make_batch(5), make_batch(1, 64, 128)):
        size, height, width = batch.images.shape[:3]
        with pytest.raises(
            InputError,
            match=f"model.plan: a batch of {size} at {height} x {width} is in none of its profiles, which hold 1 to 1 "
            "photos of 32 x 32 to 64 x 64, best 1 of 32 x 32; 1 to 4 photos of 32 x 32 to 96 x 96, best 1 of 64 x 96: "
            "build an engine whose profile holds it",
        ):
            predictor.predict(batch)
    wrong = make_batch(1)._replace(images=make_batch(1).images.astype(np.float32))
    with pytest.raises(InputError, match="images is float32, and the network takes uint8"):
        predictor.predict(wrong)
    with pytest.raises(InputError, match="in none of its profiles"):
        predictor.predict(make_batch(2)._replace(scales=make_batch(2).scales[:, None]))
    assert same(predictor, make_batch(1)) and predictor._lanes == 1


@pytest.mark.parametrize("call", ["cudaMalloc", "cudaHostAlloc", "cudaMemcpyAsync", "cudaStreamCreateWithFlags"])
@pytest.mark.parametrize("after", [0, 1])
def test_what_fails_midway_is_freed_and_the_next_call_runs(make: Make, world: World, call: str, after: int) -> None:
    predictor = TensorRTPredictor(make())
    before = world.cuda.held()
    error = cudaError_t.cudaErrorMemoryAllocation if "lloc" in call else cudaError_t.cudaErrorInvalidValue
    world.cuda.fail[call] = (after, error)
    failed = ""
    for seed in range(2):
        try:
            assert same(predictor, make_batch(1, seed=seed))
        except InputError as problem:
            failed = str(problem)
            assert predictor._lanes == 0
            problem.__traceback__ = None
            gc.collect()
            assert world.cuda.held() == before
    assert (error.name in failed) == (after == 0 or call not in ("cudaStreamCreateWithFlags", "cudaHostAlloc"))
    if "Malloc" in call and failed:
        assert failed.endswith("take a smaller batch or engine, or free the GPU")
    world.cuda.fail.clear()
    assert same(predictor, make_batch(2))
    predictor.close()
    gc.collect()
    assert world.cuda.held() == [] and world.cuda.misuses == []


@pytest.mark.parametrize("call", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"])
def test_a_capture_that_fails_changes_no_answer(
    predictor: TensorRTPredictor, world: World, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    world.cuda.fail[call] = (0, cudaError_t.cudaErrorInvalidValue)
    with caplog.at_level(logging.WARNING, "upsnet"):
        assert same(predictor, make_batch(1)) and same(predictor, make_batch(1, seed=1))
    assert f"CUDA's {call.removeprefix('cuda')} failed" in caplog.text
    assert not [each for each in world.cuda.held() if each.startswith("Graph")]


def test_what_tensorrt_says_is_in_the_line(
    predictor: TensorRTPredictor, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.trt.IExecutionContext, "set_device_memory", lambda self, memory, size: None)
    with pytest.raises(InputError, match=r"execute_async_v3 failed: .*enqueueV3: Error Code 3: 0 bytes of device mem"):
        predictor.predict(make_batch(1))
    monkeypatch.undo()


def test_an_illegal_address_is_said_and_closing_is_safe(predictor: TensorRTPredictor, world: World) -> None:
    world.cuda.fail["cudaStreamSynchronize"] = (1, cudaError_t.cudaErrorIllegalAddress)
    world.cuda.sticky = cudaError_t.cudaErrorIllegalAddress
    with pytest.raises(InputError, match="cudaErrorIllegalAddress"):
        predictor.predict(make_batch(1))
    predictor.close()


def test_it_frees_all(make: Make, world: World) -> None:
    predictor = TensorRTPredictor(make())
    for seed in range(3):
        for shape in SHAPES:
            predictor.predict(make_batch(*shape, seed=seed))
    assert {each.partition(" of ")[0] for each in world.cuda.held()} == {
        "GraphExec", "Stream", "device memory", "host", "weights",
    }  # fmt: skip
    lanes = list(predictor._idle)
    predictor.close()
    predictor.close()
    assert world.cuda.held() == [] and world.cuda.misuses == [] and lanes


# What does not load


def broken() -> dict[str, tuple[Callable[[Path, World], None], str]]:
    def cut(engine: Path, world: World) -> None:
        engine.write_bytes(engine.read_bytes()[:-100])

    def no_library(engine: Path, world: World) -> None:
        (engine.parent / PLUGINS).unlink()

    def library(engine: Path, world: World) -> None:
        """One that registers none of the engine's, and that its manifest names."""
        part = Part.of(write_plugins(engine.parent / PLUGINS, ("Other",)))
        described = EngineManifest.load(engine_manifest_path(engine))
        described.model_copy(update={"libraries": (part,)}).save(engine_manifest_path(engine))

    def memory(engine: Path, world: World) -> None:
        world.cuda.memory = 100

    return {
        "cut": (cut, "cut off"),
        "no library": (no_library, f"the library {PLUGINS} of its custom operators is missing"),
        "library": (
            library,
            f"{PLUGINS} registered no plugin of ours with tensorrt 11.1.0.106; build it again with `make plugins`",
        ),
        "memory": (memory, "TensorRT 11.1.0.106 does not load it: .*OutOfMemory"),
    }


@pytest.mark.parametrize("how", broken())
def test_what_does_not_load_is_one_line(make: Make, world: World, how: str) -> None:
    change, message = broken()[how]
    engine = make()
    change(engine, world)
    with pytest.raises(InputError, match=message) as caught:
        TensorRTPredictor(engine)
    assert "\n" not in str(caught.value)
    assert world.cuda.held() == []


def test_an_engine_of_the_other_package(make: Make) -> None:
    engine = make()
    with pytest.raises(InputError, match="an engine of tensorrt; --runtime tensorrt runs it"):
        TensorRTRTXPredictor(engine)


def test_another_graph_is_refused_and_freed(make: Make, world: World) -> None:
    engine = make(images=onnx.TensorProto.INT32)
    with pytest.raises(
        InputError, match="not an engine of this version: its inputs are images int32, sizes int32"
    ) as caught:
        TensorRTPredictor(engine)
    assert world.cuda.held() == [], caught


def test_a_second_build_of_the_plugins_has_no_place_in_a_process(make: Make, world: World, tmp_path: Path) -> None:
    with closing(TensorRTPredictor(make())) as first:
        assert same(first, make_batch(1))
    with closing(TensorRTPredictor(tmp_path / "model.plan")):
        pass  # the same library: it is loaded once
    part = Part.of(write_plugins(tmp_path / PLUGINS, kernel_abi=2))
    described = EngineManifest.load(tmp_path / "model.plan.json")
    described.model_copy(update={"libraries": (part,)}).save(tmp_path / "model.plan.json")
    with pytest.raises(InputError, match="of another build, is loaded already: take a new process for each build"):
        TensorRTPredictor(tmp_path / "model.plan")


# upsnet.load


def test_load_opens_plans_and_what_engine_json_has_chosen(make: Make, world: World, tmp_path: Path) -> None:
    engine = make()
    photo = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    with upsnet.load(engine) as model:
        assert model.runtime == "tensorrt" and model.device == "cuda:0 (Fake GPU)"
        assert model.predict(photo).ids.shape == (64, 96)
    with upsnet.load(tmp_path, runtime="tensorrt") as model:
        assert model.runtime == "tensorrt"
    with upsnet.load(tmp_path) as model:  # as folders of older versions: they say nothing
        assert model.runtime == "onnxruntime"
    (tmp_path / "engine.json").write_text('{"chosen": "tensorrt"}')
    with upsnet.load(tmp_path, device="cuda:0") as model:
        assert model.runtime == "tensorrt"
    world.cuda.gpus = 0
    with pytest.raises(
        InputError,
        match=r"Driver\); .* takes the CPU \(engine.json chose tensorrt; .* for --runtime onnxruntime, too\)$",
    ):
        upsnet.load(tmp_path)
    with pytest.raises(InputError, match=r"cudaErrorInsufficientDriver\); --runtime onnxruntime takes the CPU$"):
        upsnet.load(tmp_path, runtime="tensorrt")
    (tmp_path / "engine.json").write_text('{"chosen": "tensorrt-rtx"}')
    with pytest.raises(InputError, match=r"chose tensorrt-rtx, and its model\.rtx\.plan is missing; .* onnxruntime"):
        upsnet.load(tmp_path)
    (tmp_path / "engine.json").write_text('{"chosen": "caffe"}')
    with pytest.raises(InputError, match=r"engine\.json: chosen: Input should be 'onnxruntime', 'tensorrt', "):
        upsnet.load(tmp_path)


def test_a_run_has_its_engine_below_it(make: Make, tmp_path: Path) -> None:
    engine = make()
    run = tmp_path / "run"
    run.mkdir()
    (run / "engine").symlink_to(engine.parent)
    with upsnet.load(run, runtime="tensorrt") as model:
        assert model.runtime == "tensorrt"
    (run / "model.onnx").symlink_to(engine.parent / "model.onnx")
    with pytest.raises(
        InputError, match="only for onnxruntime and tensorrt; `upsnet engine --backend tensorrt-rtx` builds it"
    ):
        upsnet.load(run, runtime="tensorrt-rtx")


def test_without_cuda_bindings(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(InputError, match=r"cuda-bindings is not installed .*pip install 'upsnet-trt\[gpu\]'"):
        TensorRTPredictor(engine)


def test_a_model_whose_engine_manifest_does_not_fit_is_not_opened(make: Make, tmp_path: Path) -> None:
    make()
    model = tmp_path / "model.onnx"
    described = EngineManifest.load(tmp_path / "model.plan.json")
    other = described.model_copy(update={"backend": "onnxruntime", "engine": Part(file="model.onnx", sha256="0" * 64)})
    other.model_copy(update={"libraries": (), "bytes": model.stat().st_size}).save(tmp_path / "model.onnx.json")
    with pytest.raises(InputError, match=r"not the engine that model\.onnx\.json describes"):
        upsnet.load(model)
