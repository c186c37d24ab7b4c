"""Many sessions, threads and runs on one library: the same answers, and no memory that grows."""

from __future__ import annotations

import ctypes
import functools
import gc
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tests.plugins_cuda.onnxruntime import nodes
from tests.plugins_cuda.onnxruntime.nodes import (
    OUTPUTS,
    feeds_of,
    library_file,
    one_node,
    open_session,
    session_options,
)
from tests.plugins_cuda.onnxruntime.test_nodes import EXAMPLES, Errors, example

Feeds = dict[str, np.ndarray]


def joined(scale: int) -> tuple[onnx.ModelProto, Feeds]:
    """A model of all nodes, side by side, and what it takes."""
    graphs: list[onnx.NodeProto] = []
    inputs: dict[str, tuple[torch.dtype, list[None]]] = {}
    outputs: dict[str, torch.dtype] = {}
    feeds: Feeds = {}
    for name in OUTPUTS:
        _, tensors, attributes = example(name, scale)
        given = {f"{name}{index}": tensor for index, tensor in enumerate(tensors)}
        results = {f"{name}_{index}": each or tensors[0].dtype for index, each in enumerate(OUTPUTS[name])}
        graphs.append(onnx.helper.make_node(name, list(given), list(results), domain="upsnet", **attributes))
        inputs |= {label: (tensor.dtype, [None] * tensor.ndim) for label, tensor in given.items()}
        feeds |= {label: tensor.numpy() for label, tensor in given.items()}
        outputs |= results
    return nodes.model_of(graphs, inputs, outputs), feeds


@functools.cache
def alone(scale: int) -> list[np.ndarray]:
    """What one session of one thread answers."""
    model, feeds = joined(scale)
    return open_session(model, session_options(1)).run(None, feeds)


def same(found: list[np.ndarray], scale: int) -> bool:
    return all(map(np.array_equal, found, alone(scale)))


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_sessions_of_any_number_of_threads(threads: int) -> None:
    for scale in (1, 2, 5):
        model, feeds = joined(scale)
        assert same(open_session(model, session_options(threads)).run(None, feeds), scale)


def test_nodes_of_one_graph_at_the_same_time() -> None:
    model, feeds = joined(3)
    options = session_options(2)
    options.execution_mode, options.inter_op_num_threads = onnxruntime.ExecutionMode.ORT_PARALLEL, 3
    session = open_session(model, options)
    assert all(same(session.run(None, feeds), 3) for _ in range(5))


@pytest.mark.parametrize("threads", [1, 2])
def test_one_session_in_several_threads(threads: int) -> None:
    """Of inputs of several sizes, some of which are refused."""
    scales = [1, 2, 3, 4]
    models = {scale: joined(scale) for scale in scales}
    for scale in scales:
        alone(scale)
    session = open_session(models[1][0], session_options(threads))
    wrong = models[1][1] | {"PaddedNms1": np.zeros((1, 7), np.float32)}

    def work(index: int) -> bool:
        if index % 7 == 0:
            with pytest.raises(Errors, match="upsnet::PaddedNms: scores is"):
                session.run(None, wrong)
        scale = scales[index % 4]
        return same(session.run(None, models[scale][1]), scale)

    with ThreadPoolExecutor(8) as workers:
        assert all(workers.map(work, range(60)))


def test_several_sessions_open_run_and_close_at_once() -> None:
    model, feeds = joined(2)
    alone(2)
    shared = open_session(model, session_options(2))
    stop = threading.Event()

    def run_on() -> bool:
        runs = [same(shared.run(None, feeds), 2)]
        while not stop.is_set():
            runs.append(same(shared.run(None, feeds), 2))
        return all(runs)

    def come_and_go(index: int) -> bool:
        session = open_session(model, session_options(1 + index % 2))
        found = session.run(None, feeds)
        del session
        return same(found, 2)

    with ThreadPoolExecutor(4) as workers:
        running = [workers.submit(run_on) for _ in range(2)]
        try:
            assert all(workers.map(come_and_go, range(24)))
        finally:
            stop.set()
        assert all(each.result() for each in running)


def test_registered_by_several_paths(tmp_path: Path) -> None:
    """By another name of the same file, and as a copy: two libraries, then."""
    link, copy = tmp_path / "link.so", tmp_path / "copy.so"
    link.symlink_to(library_file())
    shutil.copy(library_file(), copy)
    model, feeds = joined(1)
    assert all(same(open_session(model, session_options(2, path)).run(None, feeds), 1) for path in (link, copy, link))


def test_registered_twice_with_one_session_is_refused() -> None:
    """By ONNX Runtime, which takes a domain once; another session is as good as ever."""
    options = session_options(2)
    options.register_custom_ops_library(str(library_file()))
    model, feeds = joined(1)
    with pytest.raises(Errors, match="Domain already set"):
        open_session(model, options)
    assert same(open_session(model, session_options(1)).run(None, feeds), 1)


def test_options_may_go_before_their_session() -> None:
    model, feeds = joined(1)
    options = session_options(2)
    session = open_session(model, options)
    del options
    gc.collect()
    assert same(session.run(None, feeds), 1)


# --- memory ----------------------------------------------------------------------------------------------------------


def resident() -> int:
    """Bytes of this process in memory, without what malloc merely keeps."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def growth(work: Callable[[], object], first: int, then: int) -> int:
    for _ in range(first):
        work()
    before = resident()
    for _ in range(then):
        work()
    return resident() - before


@pytest.mark.skipif(nodes.SANITIZED, reason="the address sanitizer keeps what is freed for a while")
def test_memory_is_flat_after_ten_thousand_runs() -> None:
    model, feeds = joined(1)
    session = open_session(model, session_options(1))
    assert growth(lambda: session.run(None, feeds), 500, 10_000) < 2**21  # 210 bytes a run, of six nodes


@pytest.mark.skipif(nodes.SANITIZED, reason="the address sanitizer keeps what is freed for a while")
def test_memory_is_flat_after_errors() -> None:
    options = session_options(1)
    options.log_severity_level = 4
    name, tensors, attributes = EXAMPLES["PaddedNms"]
    session = open_session(one_node(name, tensors, attributes), options)
    wrong = feeds_of([tensors[0], tensors[1][:, :5]])

    def fail() -> None:
        with pytest.raises(Errors, match="scores is"):
            session.run(None, wrong)

    assert growth(fail, 200, 3000) < 2**20


@pytest.mark.skipif(nodes.SANITIZED, reason="the address sanitizer keeps what is freed for a while")
def test_memory_is_flat_after_two_hundred_sessions() -> None:
    model, feeds = joined(1)
    assert growth(lambda: open_session(model, session_options(2)).run(None, feeds), 30, 200) < 2**22
