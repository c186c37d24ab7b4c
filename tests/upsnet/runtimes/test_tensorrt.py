"""TensorRT's runtime, held against the fakes of tests/upsnet/tensorrt, which refuse what TensorRT and CUDA refuse."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.upsnet.tensorrt.engines import SHAPES, Make, same
from tests.upsnet.tensorrt.fake_tensorrt import World
from tests.upsnet.tensorrt.graphs import make_batch
from upsnet.contract import PLUGINS
from upsnet.device import parse_device
from upsnet.errors import InputError
from upsnet.runtimes import tensorrt
from upsnet.runtimes.tensorrt import TensorRTPredictor, TensorRTRTXPredictor
from upsnet.tensorrt import lane as lane_module
from upsnet.tensorrt.cuda import Buffer, Cuda, CudaError

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
    monkeypatch.setattr(lane_module, "PATIENCE", 1)
    predictor.predict(make_batch(4, 96, 96))  # no memory grows later
    for seed, size in enumerate((1, 1, 2, 2, 1, 3, 3)):
        assert same(predictor, make_batch(size, seed=seed))
    (lane,) = predictor._idle
    assert [key[0][0] for key in lane.graphs] == [1, 3], "what was used last stays"
    assert world.cuda.held().count("GraphExec") == 2
    captures = world.cuda.calls.count("cudaStreamBeginCapture")
    assert captures == 3
    predictor.predict(make_batch(2))
    assert world.cuda.calls.count("cudaStreamBeginCapture") == captures, "what made room earns its graph again"
    predictor.predict(make_batch(2))
    assert [key[0][0] for key in lane.graphs] == [3, 2]


def test_more_shapes_than_graphs_are_not_captured_again_and_again(
    predictor: TensorRTPredictor, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_module, "MOST_GRAPHS", 2)
    monkeypatch.setattr(lane_module, "PATIENCE", 6)
    predictor.predict(make_batch(4, 96, 96))
    calls = 0
    for seed in range(10):
        for size in (1, 2, 3, 4):
            calls += 1
            assert same(predictor, make_batch(size, seed=seed))
    captures = world.cuda.calls.count("cudaStreamBeginCapture")
    assert 2 + 2 <= captures <= 2 + calls / 6, "others get their turn, and not at every call"
    for seed in range(lane_module.PATIENCE + 2):  # one that stays gets its graph
        assert same(predictor, make_batch(2, 32, 96, seed))
    launched = world.cuda.calls.count("cudaGraphLaunch")
    predictor.predict(make_batch(2, 32, 96))
    assert world.cuda.calls.count("cudaGraphLaunch") == launched + 1


def test_shapes_that_grow_by_little_move_seldom(predictor: TensorRTPredictor, world: World) -> None:
    heights = range(32, 97, 2)
    for height in heights:
        assert same(predictor, make_batch(1, height, 96))
    assert world.cuda.calls.count("cudaHostAlloc") <= 6 < len(heights)


def test_memory_that_is_short_is_no_larger_than_needed(world: World) -> None:
    cuda = Cuda.open(parse_device("cuda"))
    buffer = Buffer(cuda)
    buffer.reserve(1000)
    buffer.reserve(1100, spare=250)
    assert buffer.size == 1250
    world.cuda.memory = 1400
    buffer.reserve(1300, spare=312)
    assert buffer.size == 1300 and world.cuda.held() == ["device memory of 1300 bytes"]
    with pytest.raises(CudaError, match="cudaErrorMemoryAllocation"):
        buffer.reserve(1500, spare=325)
    assert (buffer.address, buffer.size) == (0, 0) and world.cuda.held() == []


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


def test_what_says_itself_that_it_cannot_be_captured(
    predictor: TensorRTPredictor, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[int] = []
    context = type("IExecutionContext", (world.trt.IExecutionContext,), {})
    context.is_stream_capturable = lambda _, stream: asked.append(stream)  # type: ignore[attr-defined]
    monkeypatch.setattr(world.trt, "IExecutionContext", context)
    assert all(same(predictor, make_batch(1, seed=seed)) for seed in range(4))
    assert len(asked) == 1 and asked[0] == int(predictor._idle[0].stream)
    assert (
        "TensorRT says that it cannot be captured" in caplog.text and "cudaStreamBeginCapture" not in world.cuda.calls
    )
    monkeypatch.undo()


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
    world.cuda.contexts.add(0)  # somebody else's
    engine = make()
    with closing(TensorRTPredictor(engine, "cuda:1")) as predictor:
        assert predictor.device_name == "cuda:1 (Fake GPU)"
        with ThreadPoolExecutor(2) as pool:
            assert all(pool.map(lambda seed: same(predictor, make_batch(1, seed=seed)), range(6)))
            assert set(pool.map(lambda _: world.cuda.device, range(4))) == {0}
        assert {each.device for each in world.cuda.allocations.values()} == {1}
    assert world.cuda.device == 0 and world.cuda.held() == [] and world.cuda.misuses == []


def test_no_context_is_made_on_another_gpu(make: Make, world: World) -> None:
    world.cuda.gpus = 2
    with closing(TensorRTPredictor(make(), "cuda:1")) as predictor:
        assert same(predictor, make_batch(1))
    assert world.cuda.contexts == {1} and world.cuda.misuses == []


@pytest.mark.parametrize(
    ("gpus", "device", "message"),
    [
        (1, "cpu", "device cpu: TensorRT computes on a GPU alone; the runtime onnxruntime takes the CPU"),
        (1, "cuda:1", "device cuda:1: there is 1 NVIDIA GPU, cuda:0"),
        (2, "cuda:5", "device cuda:5: there are 2 NVIDIA GPUs"),
        (1, "gpu", "device 'gpu': use auto, cpu, cuda or cuda:N"),
        (0, "auto", r"model\.plan: this machine has no NVIDIA GPU .*\(cudaErrorInsufficientDriver\); --runtime onnxr"),
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
