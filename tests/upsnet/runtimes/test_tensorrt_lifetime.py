"""When TensorRT's runtime lets go of what it holds, and what is there before it: Ctrl-C, no close, loaded libraries."""

from __future__ import annotations

import ctypes
import gc
import itertools
import linecache
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import upsnet
from tests.upsnet.tensorrt.engines import Make, same
from tests.upsnet.tensorrt.fake_tensorrt import World, environment
from tests.upsnet.tensorrt.graphs import make_batch
from upsnet.contract import PLUGINS
from upsnet.errors import InputError
from upsnet.runtimes import tensorrt
from upsnet.runtimes.tensorrt import TensorRTPredictor
from upsnet.tensorrt import lane as lane_module
from upsnet.tensorrt.api import load_plugins, make_logger, open_api, take_errors


@pytest.mark.parametrize("place", ["Lane", "run", "find_profile", "leave"])
def test_ctrl_c_loses_no_lane(make: Make, world: World, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    predictor = TensorRTPredictor(make())

    def interrupt(*given: Any, **named: Any) -> Any:
        raise KeyboardInterrupt

    where: tuple[Any, str] = {
        "Lane": (tensorrt, "Lane"),
        "run": (lane_module.Lane, "run"),
        "find_profile": (tensorrt.Engine, "find_profile"),
        "leave": (tensorrt, "RawPrediction"),
    }[place]
    monkeypatch.setattr(*where, interrupt)
    for seed in range(tensorrt.MOST_LANES + 1):
        with pytest.raises(KeyboardInterrupt):
            predictor.predict(make_batch(1, seed=seed))
    monkeypatch.undo()
    assert predictor._busy == {} and predictor._lanes == (place == "leave")
    predictor.close()
    gc.collect()
    assert world.cuda.held() == []


def test_ctrl_c_at_any_line_of_a_call_loses_no_lane(make: Make, world: World) -> None:
    """Raised at each line of the predictor's file in turn, but for the way back."""
    predictor = TensorRTPredictor(make())
    predictor.predict(make_batch(1))
    file = tensorrt.__file__
    interrupted = 0
    for stop in itertools.count():
        left = [stop]

        def trace(frame: Any, event: str, argument: Any, left: list[int] = left) -> Any:
            if frame.f_code.co_filename != file or frame.f_code.co_name in ("_leave", "_lanes"):
                return None
            if event == "line" and "self._leave(" not in linecache.getline(file, frame.f_lineno):
                left[0] -= 1
                if left[0] == -1:
                    raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            predictor.predict(make_batch(1, seed=stop))
        except KeyboardInterrupt:
            interrupted += 1
        else:
            break
        finally:
            sys.settrace(before)
        assert predictor._busy == {} and len(predictor._idle) <= tensorrt.MOST_LANES, stop
        assert all(not lane._closed for lane in predictor._idle), stop
        assert world.cuda.held().count("Stream") == len(predictor._idle), stop
    assert interrupted > 10
    assert same(predictor, make_batch(1))
    predictor.close()


def test_each_call_has_its_own_errors(world: World) -> None:
    log = make_logger(open_api("tensorrt"))
    severity = world.trt.ILogger.Severity.ERROR
    log.log(severity, "mine")
    with ThreadPoolExecutor(1) as pool:
        pool.submit(log.log, severity, "theirs").result()
        assert take_errors(log) == ["mine"]
        assert take_errors(log, own=True) == []
        assert pool.submit(take_errors, log).result() == ["theirs"]
        pool.submit(log.log, severity, "a worker's").result()
    assert take_errors(log) == ["a worker's"] and take_errors(log) == []


def test_a_failed_call_says_nothing_of_earlier_ones(make: Make, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(TensorRTPredictor(make())) as predictor:
        log = predictor._engine.logger  # type: ignore[union-attr]
        log.log(world.trt.ILogger.Severity.ERROR, "of an earlier call")
        monkeypatch.setattr(world.trt.IExecutionContext, "set_device_memory", lambda self, memory, size: None)
        with pytest.raises(InputError, match=r"execute_async_v3 failed: .*bytes of device mem") as caught:
            predictor.predict(make_batch(1))
        assert "earlier" not in str(caught.value)


# What is not closed


def test_a_predictor_that_is_dropped_frees_all(make: Make, world: World) -> None:
    predictor = TensorRTPredictor(make())
    assert same(predictor, make_batch(1)) and same(predictor, make_batch(1)) and world.cuda.held()
    del predictor
    gc.collect()
    assert world.cuda.held() == [] and world.cuda.misuses == []


def test_a_model_that_is_loaded_anew_frees_the_old_one(make: Make, world: World) -> None:
    engine = make()
    photo = np.zeros((64, 96, 3), np.uint8)
    model = upsnet.load(engine)
    model.predict(photo)
    before = world.cuda.held()
    for _ in range(2):
        model = upsnet.load(engine)
        model.predict(photo)
        gc.collect()
        assert world.cuda.held() == before
    del model
    gc.collect()
    assert world.cuda.held() == []


def test_a_fork_frees_nothing(make: Make, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = TensorRTPredictor(make())
    predictor.predict(make_batch(1))
    calls, pid = list(world.cuda.calls), os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    tensorrt.free(*predictor._free.peek()[2])  # type: ignore[index]
    assert world.cuda.calls == calls
    monkeypatch.undo()
    predictor.close()
    assert world.cuda.held() == []


def test_the_end_of_a_process_frees_all(make: Make, world: World) -> None:
    script = (
        "import atexit, cuda.bindings.runtime as cuda\n"
        "atexit.register(lambda: print(cuda.fake.held(), cuda.fake.misuses))\n"  # after the finalizers
        "from upsnet.runtimes.tensorrt import TensorRTPredictor\n"
        "from tests.upsnet.tensorrt.graphs import make_batch\n"
        "from tests.upsnet.tensorrt.engines import same\n"
        f"predictor = TensorRTPredictor({str(make())!r})\n"
        "print(same(predictor, make_batch(1)), len(cuda.fake.held()) > 3)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment("11.1", 1, (8, 9)), capture_output=True, text=True
    )
    assert (done.stdout, done.stderr, done.returncode) == ("True True\n[] []\n", "", 0)


# Plugins


@pytest.mark.parametrize("first", ["the library", "the package"])
def test_a_library_that_is_in_the_process_already(make: Make, world: World, first: str) -> None:
    engine = make()
    ctypes.CDLL(str(engine.with_name(PLUGINS)))
    if first == "the library":
        world.plugins.clear()  # there was nothing that it could register with
    with closing(TensorRTPredictor(engine)) as predictor:
        assert same(predictor, make_batch(1))
    with closing(TensorRTPredictor(engine)) as predictor:
        assert same(predictor, make_batch(1))


@pytest.mark.parametrize("how", ["missing", "a folder"])
def test_a_library_that_cannot_be_read_is_said(world: World, tmp_path: Path, how: str) -> None:
    library = tmp_path / PLUGINS
    if how == "a folder":
        library.mkdir()
    problem = load_plugins(open_api("tensorrt"), library)
    assert problem.startswith(f"{library}: cannot be read: ") and problem.endswith("with `make plugins`")
