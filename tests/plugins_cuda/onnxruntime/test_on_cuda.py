"""The kernels for ONNX Runtime's CUDA provider, where there is no GPU: what they ask of ONNX Runtime, what the
libraries register, and that kernels for CUDA leave a session on the CPU alone."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.plugins_cuda.conftest import schema_of
from upsnet.kernels.building import SOURCES, build

ROOMS = ("roi_align_fpn", "nms", "deform_conv", "panoptic_fusion")
MADE = ["KernelInfoGetAllocator info=1f memory=0", "AllocatorGetInfo allocator=a1"]
STREAM = "KernelContext_GetGPUComputeStream context=c0"
SCRATCH = "KernelContext_GetScratchBuffer context=c0 memory=3e bytes=768"
DESTROYED = "ReleaseAllocator allocator=a1"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("on_cuda") / "on_cuda_check"
    source = Path(__file__).with_name("on_cuda_check.cpp")
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{SOURCES}", "-DUPSNET_DEVICES=OnCuda"]
    made = subprocess.run([*command, str(source), "-o", str(path), "-ldl"], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return path


def said(program: Path, *arguments: Path) -> list[str]:
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.fixture(scope="module")
def cases(program: Path) -> dict[str, list[str]]:
    """The calls of each case of on_cuda_check.cpp: making a kernel, one run of it, and its end."""
    text = "\n".join(said(program))
    blocks = [block.splitlines() for block in text.split("== ")[1:]]
    return {lines[0]: lines[1:] for lines in blocks}


def test_launches_on_the_stream_in_memory_of_the_session(cases: dict[str, list[str]]) -> None:
    """And gives that memory back: what the list does not hold was not called."""
    launched = ["launch workspace=da7a bytes=768 stream=57", "AllocatorFree allocator=a1 data=da7a"]
    assert cases["a launch"] == [*MADE, STREAM, SCRATCH, *launched, "returned nothing", DESTROYED]


def test_asks_for_no_memory_where_none_is_wanted(cases: dict[str, list[str]]) -> None:
    launched = ["launch workspace=0 bytes=0 stream=57", "returned nothing"]
    assert cases["without a workspace"] == [*MADE, STREAM, *launched, DESTROYED]


def test_failures_give_the_memory_back(cases: dict[str, list[str]]) -> None:
    failed = cases["a launch that fails"]
    assert failed[-3:] == [
        "AllocatorFree allocator=a1 data=da7a",
        "returned an illegal memory access was encountered",
        DESTROYED,
    ]
    assert cases["no memory"] == [*MADE, STREAM, SCRATCH, "threw status=bad", DESTROYED]


def test_scratch_memory_is_of_a_stream(cases: dict[str, list[str]]) -> None:
    """KernelContext_GetScratchBuffer reads the stream, and ends the process where there is none."""
    launched = ["launch workspace=da7b bytes=768 stream=0", "AllocatorFree allocator=a1 data=da7b"]
    allocated = "AllocatorAlloc allocator=a1 bytes=768"
    assert cases["without a stream"] == [*MADE, STREAM, allocated, *launched, "returned nothing", DESTROYED]


def registered(program: Path, library: str) -> dict[str, list[str]]:
    """For each provider, the nodes with the types of their tensors; all in the device's memory."""
    domain, *operators, error = said(program, build(library, ""))
    assert (domain, error) == ("domain upsnet", "error 0")
    providers: dict[str, list[str]] = {}
    for provider, operator in (line.split(" ", 1) for line in operators):
        providers.setdefault(provider, []).append(operator)
    return providers


def test_every_node_has_kernels_for_both_providers(program: Path) -> None:
    found = registered(program, "onnxruntime_emulated")
    assert set(found) == {"CPUExecutionProvider", "CUDAExecutionProvider"}
    assert found["CPUExecutionProvider"] == found["CUDAExecutionProvider"]
    assert not any("(host)" in operator for operator in found["CUDAExecutionProvider"])
    nodes = {operator.split()[0] for operator in found["CUDAExecutionProvider"]}
    wanted = {schema.node for schema in map(schema_of, ROOMS)}
    wanted |= {tensor.node for schema in map(schema_of, ROOMS) for tensor in schema.tensors if tensor.node}
    assert nodes == wanted
    alone = registered(program, "onnxruntime")
    assert set(alone) == {"CPUExecutionProvider"}
    more = set(alone["CPUExecutionProvider"]) - set(found["CPUExecutionProvider"])
    assert {operator.split()[0] for operator in more} == {"BestAnchors", "UsedRows", "AllRows"}, "for a CPU alone"
    assert set(found["CPUExecutionProvider"]) < set(alone["CPUExecutionProvider"])
