"""TensorRT's runtime, held against the fakes of tests/upsnet/tensorrt, which refuse what TensorRT and CUDA refuse."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import platform
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import upsnet
from tests.upsnet.tensorrt.fake_cuda import cudaError_t
from tests.upsnet.tensorrt.fake_tensorrt import World, install, write_plugins
from tests.upsnet.tensorrt.graphs import expected, make_batch, manifest, write_graph
from upsnet.contract import PLUGINS
from upsnet.driver import Driver
from upsnet.engines.manifest import ENGINES, EngineManifest, Part, Profile, engine_manifest_path
from upsnet.errors import InputError
from upsnet.geometry import NetworkBatch
from upsnet.runtimes import tensorrt
from upsnet.runtimes.tensorrt import TensorRTPredictor, TensorRTRTXPredictor
from upsnet.tensorrt import lane as lane_module
from upsnet.tensorrt.api import Name, make_logger, open_api

SMALL: Profile = {
    "images": ((1, 32, 32, 3), (1, 32, 32, 3), (1, 64, 64, 3)),
    "sizes": ((1, 2), (1, 2), (1, 2)),
    "scales": ((1,), (1,), (1,)),
}
LARGE: Profile = {
    "images": ((1, 32, 32, 3), (1, 64, 96, 3), (4, 96, 96, 3)),
    "sizes": ((1, 2), (1, 2), (4, 2)),
    "scales": ((1,), (1,), (4,)),
}
SHAPES = [(1, 64, 96), (2, 64, 96), (1, 32, 32), (4, 96, 96), (1, 96, 64)]
Make = Callable[..., Path]


@pytest.fixture(params=["11.1"])
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    monkeypatch.setattr("upsnet.engines.check.find_driver", lambda: Driver("no GPU"))
    monkeypatch.setattr("upsnet.tensorrt.cuda.gpu_problem", lambda: "this machine has no NVIDIA GPU that is visible")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return install(monkeypatch, request.param, capability=(8, 9))  # TensorRT-RTX knows no 9.0


@pytest.fixture
def make(world: World, tmp_path: Path) -> Make:
    """An engine's folder: the plan, as the fake builds it, its library and its manifest."""

    def make_engine(
        profiles: tuple[Profile, ...] = (SMALL, LARGE), flags: tuple[str, ...] = (), images: int | None = None
    ) -> Path:
        name: Name = "tensorrt-rtx" if world.flavour.rtx else "tensorrt"
        api = open_api(name)
        library = write_plugins(tmp_path / PLUGINS)
        model = write_graph(tmp_path / "model.onnx", **({"images": images} if images else {}))
        ctypes.CDLL(str(library))
        engine = tmp_path / ENGINES[name]
        engine.write_bytes(bytes(build(api.module, model, profiles, flags)))
        world.plugins.clear()  # as in the process that opens it later
        EngineManifest(
            backend=name,
            engine=Part.of(engine),
            bytes=engine.stat().st_size,
            model=Part.of(model),
            libraries=(Part.of(library),),
            builder=api.version,
            platform=f"{sys.platform}-{platform.machine()}",
            version_compatible="VERSION_COMPATIBLE" in flags,
            precision="fp32",
            profiles=profiles,
            network=manifest(),
        ).save(engine_manifest_path(engine))
        return engine

    return make_engine


def build(trt: Any, model: Path, profiles: tuple[Profile, ...], flags: tuple[str, ...]) -> Any:
    logger = make_logger(open_api("tensorrt-rtx" if trt._world.flavour.rtx else "tensorrt"))
    builder = trt.Builder(logger)
    network, config = builder.create_network(0), builder.create_builder_config()
    assert trt.OnnxParser(network, logger).parse(model.read_bytes())
    for flag in flags:
        config.set_flag(trt.BuilderFlag[flag])
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        for name, each in shapes.items():
            profile.set_shape(name, *each)
        config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config)


@pytest.fixture
def predictor(make: Make, world: World) -> Iterator[TensorRTPredictor]:
    with closing((TensorRTRTXPredictor if world.flavour.rtx else TensorRTPredictor)(make())) as opened:
        yield opened
    assert world.cuda.misuses == []


def same(predictor: TensorRTPredictor, batch: NetworkBatch) -> bool:
    answer, wanted = predictor.predict(batch), expected(batch)
    return all(
        each.dtype == right.dtype and np.array_equal(each, right) for each, right in zip(answer, wanted, strict=True)
    )


# What it computes


@pytest.mark.parametrize("world", ["10.9", "10.16", "11.1", "rtx"], indirect=True)
def test_every_shape_again_and_again_with_new_content(predictor: TensorRTPredictor, world: World) -> None:
    for seed in range(4):
        for size, height, width in SHAPES:
            assert same(predictor, make_batch(size, height, width, seed)), (seed, size, height, width)
    launched = world.cuda.calls.count("cudaGraphLaunch")
    assert launched == (0 if world.flavour.rtx else 2 * len(SHAPES)), "from the third time on, as a graph"
    assert predictor.device_name == "cuda:0 (Fake GPU)" and predictor.kernels == PLUGINS


def test_answers_are_the_callers_own(predictor: TensorRTPredictor) -> None:
    first = predictor.predict(make_batch(1))
    kept = first.panoptic.copy()
    predictor.predict(make_batch(1, seed=1))
    assert np.array_equal(first.panoptic, kept)


def test_one_copy_each_way(predictor: TensorRTPredictor, world: World) -> None:
    predictor.predict(make_batch(2))
    assert world.cuda.calls.count("cudaMemcpyAsync") == 2


def test_the_profile_whose_usual_shape_is_nearest(predictor: TensorRTPredictor) -> None:
    engine = predictor._engine
    assert engine is not None
    found = [engine.find_profile([(size, h, w, 3), (size, 2), (size,)]) for size, h, w in [*SHAPES, (1, 64, 64)]]
    assert found == [1, 1, 0, 1, 1, 1]


def test_memory_grows_and_is_used_again(predictor: TensorRTPredictor, world: World) -> None:
    for size in (1, 2, 4, 1, 2, 4):
        predictor.predict(make_batch(size))
    allocations = world.cuda.calls.count("cudaMalloc"), world.cuda.calls.count("cudaHostAlloc")
    for size in (4, 2, 1):
        assert same(predictor, make_batch(size, seed=5))
    assert (world.cuda.calls.count("cudaMalloc"), world.cuda.calls.count("cudaHostAlloc")) == allocations
    assert allocations == (6, 3)


def test_as_many_graphs_as_are_allowed(
    predictor: TensorRTPredictor, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_module, "MOST_GRAPHS", 2)
    predictor.predict(make_batch(4, 96, 96))  # no memory grows later
    for seed, size in enumerate((1, 1, 2, 2, 1, 3, 3)):
        assert same(predictor, make_batch(size, seed=seed))
    (lane,) = predictor._idle
    assert [key[0][0] for key in lane.graphs] == [1, 3], "what was used last stays"
    assert world.cuda.held().count("GraphExec") == 2


def test_scratch_memory_that_grows_late_moves_all(
    predictor: TensorRTPredictor, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A context of its own may ask for more than the first one did."""
    sizes = iter(range(20_000, 10**6, 20_000))
    monkeypatch.setattr(lane_module, "scratch_size", lambda context: next(sizes))
    world.capturable = False
    for seed in range(4):
        assert same(predictor, make_batch(1, seed=seed))


def test_a_graph_that_cannot_be_captured_is_said_once(
    predictor: TensorRTPredictor, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.capturable = False
    with caplog.at_level(logging.WARNING, "upsnet"):
        for seed in range(4):
            assert same(predictor, make_batch(1, seed=seed))
    (record,) = caplog.records
    assert "CUDA graphs are off, calls are slower: " in record.message and "not permitted" in record.message
    assert "cudaGraphLaunch" not in world.cuda.calls


def test_weights_that_are_streamed_are_not_captured(make: Make, world: World) -> None:
    with closing(TensorRTPredictor(make(flags=("WEIGHT_STREAMING",)))) as predictor:
        assert all(same(predictor, make_batch(1, seed=seed)) for seed in range(3))
    assert "cudaStreamBeginCapture" not in world.cuda.calls


@pytest.mark.parametrize("world", ["rtx"], indirect=True)
def test_rtx_keeps_the_kernels_that_it_compiled(make: Make, world: World, tmp_path: Path) -> None:
    engine = make()
    cache = tmp_path / "cache"
    for compiled in (2, 2, 4):
        for file in cache.rglob("*.cache") if compiled == 4 else ():
            file.write_bytes(b"of another version")
        with closing(TensorRTRTXPredictor(engine)) as predictor:
            assert same(predictor, make_batch(1)) and same(predictor, make_batch(2))
        assert world.compiled == compiled
        (file,) = (cache / "upsnet-trt").iterdir()
        assert file.name.startswith("kernels-1.7.1.116-") and file.name.endswith("-Fake-GPU.cache")
    assert file.read_bytes().startswith(b"cache") and world.cuda.held() == []
    shutil.rmtree(cache)
    cache.write_text("no folder")  # nothing depends on it
    with closing(TensorRTRTXPredictor(engine)) as predictor:
        assert same(predictor, make_batch(1))


def test_a_version_compatible_plan_may_run_its_code(make: Make) -> None:
    with closing(TensorRTPredictor(make(flags=("VERSION_COMPATIBLE",)))) as predictor:
        assert same(predictor, make_batch(1))


# Threads


def test_eight_threads_with_mixed_shapes(predictor: TensorRTPredictor, world: World) -> None:
    batches = [make_batch(*SHAPES[index % len(SHAPES)], seed=index) for index in range(48)]
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda batch: same(predictor, batch), batches))
    assert 1 <= predictor._lanes <= tensorrt.MOST_LANES
    assert len(predictor._idle) == predictor._lanes


def test_calls_at_a_time_have_lanes_of_their_own(
    predictor: TensorRTPredictor, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(tensorrt.MOST_LANES, timeout=20)
    wait = lane_module.Stream.wait

    def meet(stream: lane_module.Stream) -> None:
        together.wait()
        wait(stream)

    monkeypatch.setattr(lane_module.Stream, "wait", meet)
    with ThreadPoolExecutor(tensorrt.MOST_LANES) as pool:
        # shapes of the first profile, to which a context needs no switch, hence one wait a call
        answers = list(pool.map(lambda seed: same(predictor, make_batch(1, 32, 32, seed)), range(tensorrt.MOST_LANES)))
    monkeypatch.undo()
    assert all(answers) and predictor._lanes == tensorrt.MOST_LANES


def test_it_closes_when_the_last_call_is_done(make: Make, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, inside, go = TensorRTPredictor(make()), threading.Event(), threading.Event()
    run = lane_module.Lane.run

    def slow(lane: Any, arrays: Any, profile: int) -> Any:
        inside.set()
        assert go.wait(20)
        return run(lane, arrays, profile)

    monkeypatch.setattr(lane_module.Lane, "run", slow)
    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(same, predictor, make_batch(1))
        assert inside.wait(20)
        closed = pool.submit(predictor.close)
        go.set()
        assert answer.result(20)
        closed.result(20)
    assert world.cuda.held() == [] and world.cuda.misuses == []
    with pytest.raises(InputError, match="the engine is closed; load it again"):
        predictor.predict(make_batch(1))


# Devices


def test_another_gpu_is_current_during_a_call_and_not_after_it(make: Make, world: World) -> None:
    world.cuda.gpus = 2
    engine = make()
    with closing(TensorRTPredictor(engine, "cuda:1")) as predictor:
        assert predictor.device_name == "cuda:1 (Fake GPU)"
        with ThreadPoolExecutor(2) as pool:
            assert all(pool.map(lambda seed: same(predictor, make_batch(1, seed=seed)), range(6)))
            assert set(pool.map(lambda _: world.cuda.device, range(4))) == {0}
        assert {each.device for each in world.cuda.allocations.values()} == {1}
    assert world.cuda.device == 0 and world.cuda.held() == [] and world.cuda.misuses == []


@pytest.mark.parametrize(
    ("gpus", "device", "message"),
    [
        (1, "cpu", "device cpu: TensorRT computes on a GPU alone; the runtime onnxruntime takes the CPU"),
        (1, "cuda:1", "device cuda:1: there is 1 NVIDIA GPU, cuda:0"),
        (2, "cuda:5", "device cuda:5: there are 2 NVIDIA GPUs"),
        (1, "gpu", "device 'gpu': use auto, cpu, cuda or cuda:N"),
        (0, "auto", r"this machine has no NVIDIA GPU .*\(cudaErrorInsufficientDriver\)"),
    ],
)
def test_a_device_that_cannot_be_had(make: Make, world: World, gpus: int, device: str, message: str) -> None:
    engine = make()
    world.cuda.gpus = gpus
    with pytest.raises(InputError, match=message):
        TensorRTPredictor(engine, device)


def test_a_fork_is_told_what_to_do(predictor: TensorRTPredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    with pytest.raises(InputError, match="opened in another process: CUDA does not outlive a fork; load it here"):
        predictor.predict(make_batch(1))
    predictor.close()  # leaves alone what is the parent's
    monkeypatch.undo()
    assert same(predictor, make_batch(1))


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
        "library": (library, "TensorRT 11.1.0.106 does not load it: .*Cannot find plugin: AllRows"),
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
        match=r"Driver\) \(engine.json chose tensorrt; there is a file for --runtime onnxruntime, too\)$",
    ):
        upsnet.load(tmp_path)
    with pytest.raises(InputError, match=r"cudaErrorInsufficientDriver\)$"):
        upsnet.load(tmp_path, runtime="tensorrt")
    (tmp_path / "engine.json").write_text('{"chosen": "tensorrt-rtx"}')
    with pytest.raises(InputError, match=r"chose tensorrt-rtx, and its model\.rtx\.plan is missing; .* onnxruntime"):
        upsnet.load(tmp_path)
    (tmp_path / "engine.json").write_text('{"chosen": "caffe"}')
    with pytest.raises(InputError, match=r"engine\.json: chosen is 'caffe', and there are pytorch, "):
        upsnet.load(tmp_path)


def test_a_run_has_its_engine_below_it(make: Make, tmp_path: Path) -> None:
    engine = make()
    run = tmp_path / "run"
    run.mkdir()
    (run / "engine").symlink_to(engine.parent)
    with upsnet.load(run, runtime="tensorrt") as model:
        assert model.runtime == "tensorrt"
    (run / "model.onnx").symlink_to(engine.parent / "model.onnx")
    with pytest.raises(InputError, match="only for onnxruntime; `upsnet engine --backend tensorrt-rtx` builds it"):
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
