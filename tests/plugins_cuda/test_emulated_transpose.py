"""The transposition of NCHW maps on a GPU (common/transpose.cuh), emulated, against PyTorch's permute."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

MAPS = 4
GUARD = 16  # elements before and behind every output
UNWRITTEN = 77


class Transposition(ctypes.Structure):
    """transpose.cuh's."""

    _fields_ = [
        ("input", ctypes.c_void_p * MAPS),
        ("output", ctypes.c_void_p * MAPS),
        ("columns", ctypes.c_int64 * MAPS),
        ("batch", ctypes.c_int64),
        ("rows", ctypes.c_int),
        ("pitch", ctypes.c_int),
    ]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> ctypes.CDLL:
    operators = project_root / "plugins_cuda"
    sources = [Path(__file__).with_name("emulated_transpose.cpp"), operators / "emulator" / "emulator.cpp"]
    output = tmp_path_factory.mktemp("transpose") / "transpose.so"
    sanitizers = os.environ.get("UPSNET_SANITIZE")
    flags = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-g"] if sanitizers else []
    includes = ["-I", str(operators / "emulator"), "-I", str(operators)]
    command = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", *flags, *includes, *map(str, sources), "-o", str(output)]
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    subprocess.run(command, check=True, env=environment)
    return ctypes.CDLL(str(output))


def aligned(elements: int, dtype: torch.dtype, shift: int) -> Tensor:
    """Memory that begins `shift` elements behind a multiple of 16 bytes."""
    memory = torch.full((elements + 8 + shift,), UNWRITTEN, dtype=dtype)
    begin = -memory.data_ptr() % 16 // dtype.itemsize + shift
    return memory[begin : begin + elements]


def check(
    emulated: ctypes.CDLL,
    dtype: torch.dtype,
    batch: int,
    rows: int,
    columns: list[int],
    pitch: int = 0,
    shifts: tuple[int, int] = (0, 0),
    every_other: bool = False,
) -> None:
    """shifts: of inputs and of outputs, in elements."""
    pitch = pitch or rows
    maps, inputs, memories = Transposition(batch=batch, rows=rows, pitch=pitch), [], []
    for index, length in enumerate(columns):
        source = aligned(batch * rows * length, dtype, shifts[0])
        source.copy_(torch.arange(source.numel()).add(index).remainder(2039).to(dtype))
        target = aligned(batch * length * pitch + 2 * GUARD, dtype, shifts[1])
        maps.input[index], maps.columns[index] = source.data_ptr(), length
        maps.output[index] = target[GUARD:].data_ptr()
        inputs.append(source.view(batch, rows, length))
        memories.append(target)
    tile = 128 // dtype.itemsize
    asked = ctypes.c_int64(tile if every_other else 0)
    assert emulated.transpose_maps(ctypes.byref(maps), dtype.itemsize, asked) == 0
    for index, (source, target) in enumerate(zip(inputs, memories, strict=True)):
        length = columns[index]
        expected = torch.zeros(batch, length, pitch, dtype=dtype)
        expected[..., :rows] = source.permute(0, 2, 1)
        if every_other:
            number = index + torch.arange(batch)[:, None] + torch.arange(length) // tile
            expected[number % 2 == 1] = UNWRITTEN
        assert torch.equal(target[GUARD : target.numel() - GUARD].view(expected.shape), expected)
        assert (target[:GUARD] == UNWRITTEN).all() and (target[target.numel() - GUARD :] == UNWRITTEN).all()


TYPES = [torch.float16, torch.float32]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("order", ["forward", "reverse", "shuffle"])
def test_pyramid(emulated: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, order: str) -> None:
    """Four maps at once, three of them in whole pieces, the rows in two parts."""
    monkeypatch.setenv("UPSNET_EMULATOR_ORDER", order)
    check(emulated, dtype, 2, 256, [24 * 16, 12 * 8, 6 * 4, 3 * 2])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(TYPES),
    batch=st.integers(1, 3),
    rows=st.integers(1, 270),
    columns=st.lists(st.one_of(st.integers(0, 200), st.integers(0, 25).map(lambda n: 8 * n)), min_size=1, max_size=4),
    padding=st.sampled_from([0, 0, 8, 3]),
    shifts=st.tuples(st.sampled_from([0, 0, 1, 2, 4, 5]), st.sampled_from([0, 0, 1, 2, 4, 7])),
    every_other=st.booleans(),
)
def test_any_size_anywhere(
    emulated: ctypes.CDLL,
    dtype: torch.dtype,
    batch: int,
    rows: int,
    columns: list[int],
    padding: int,
    shifts: tuple[int, int],
    every_other: bool,
) -> None:
    pitch = (rows + 7) // 8 * 8 if padding == 8 else rows + padding
    check(emulated, dtype, batch, rows, columns, pitch, shifts, every_other)


@pytest.mark.parametrize("dtype", TYPES)
def test_as_many_tiles_as_a_gpu_holds(emulated: ctypes.CDLL, dtype: torch.dtype) -> None:
    """Then a block takes all rows of its columns, one tile after the other."""
    check(emulated, dtype, 1030, 136, [8, 16], 136)


def test_nothing_to_do(emulated: ctypes.CDLL) -> None:
    check(emulated, torch.float32, 0, 5, [7])
    check(emulated, torch.float32, 3, 5, [0, 0, 0, 0])
    check(emulated, torch.float32, 3, 0, [4])
