"""The threads of the CPU fronts are their caller's: for_each itself, and every room on a pool that is not OpenMP's."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from plugins_cuda import generate, library
from plugins_cuda.library import Library
from tests.plugins_cuda.conftest import prepared, schema_of
from tests.plugins_cuda.inputs import LAYOUTS, room_inputs

ROOMS = ["nms", "roi_align_fpn", "deform_conv", "panoptic_fusion", "best_anchors"]
ROOMS += ["roi_align_fpn/backward", "deform_conv/backward"]


def compile_with_pool(output: Path, sources: list[Path], *flags: str) -> Path:
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    command = ["g++", "-std=c++17", "-O1", f"-I{library.SOURCES}", *flags, *map(str, sources), "-o", str(output)]
    subprocess.run(command, check=True, env=environment)
    return output


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("pool") / "cases"
    return compile_with_pool(program, [Path(__file__).with_name("pool_cases.cpp")], "-pthread")


@pytest.mark.parametrize(
    "case",
    [
        "every_index_once",
        "slots_share_nothing",
        "little_work_stays_with_the_caller",
        "idle_slots_make_nothing",
        "exceptions_reach_the_caller",
    ],
)
def test_for_each(cases: Path, case: str) -> None:
    done = subprocess.run([str(cases), case], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("", 0)


@pytest.fixture(scope="module")
def in_turn(tmp_path_factory: pytest.TempPathFactory) -> Library:
    folder = tmp_path_factory.mktemp("in_turn")
    subprocess.run([sys.executable, generate.__file__, folder, *ROOMS], check=True)
    sources = [library.SOURCES / room / "cpu.cpp" for room in ROOMS]
    flags = ["-shared", "-fPIC", "-ffp-contract=off", f"-I{folder}"]
    path = folder / "libupsnet_cpu.so"
    return Library("cpu", compile_with_pool(path, [Path(__file__).with_name("in_turn.cpp"), *sources], *flags))


def run(served: Library, room: str, layout: torch.memory_format, threads: int) -> list[Tensor]:
    params, outputs, _held = prepared(room, room_inputs(room, 6, layout=layout))
    assert served._operator(schema_of(room).name, params).start(ctypes.byref(params), threads) == 0
    return outputs


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("room", ROOMS)
def test_rooms_run_on_any_pool(in_turn: Library, room: str, layout: torch.memory_format) -> None:
    """One slot or many, at once or in turn: the same arithmetic, and close to what the library's level computes."""
    alone = run(in_turn, room, layout, 1)
    for others in (run(in_turn, room, layout, 7), run(in_turn, room, layout, 100)):
        torch.testing.assert_close(others, alone, rtol=0, atol=0)
    openmp = [run(library.load("cpu"), room, layout, threads) for threads in (1, 3)]
    torch.testing.assert_close(openmp[1], openmp[0], rtol=0, atol=0)
    exact = room in ("nms", "panoptic_fusion", "best_anchors")
    torch.testing.assert_close(openmp[0], alone, rtol=0 if exact else 1e-4, atol=0 if exact else 1e-4)


def test_rooms_know_no_threads_of_their_own() -> None:
    for path in [*library.SOURCES.glob("**/cpu*.cpp"), *library.SOURCES.glob("**/cpu*.h")]:
        text = path.read_text()
        assert "omp.h" not in text and "omp parallel" not in text and "std::thread" not in text, path
