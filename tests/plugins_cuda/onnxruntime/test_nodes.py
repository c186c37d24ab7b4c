"""Nodes of ONNX Runtime with the library: the kernel runs in the body's place; what it refuses is an error with our
words, never a crash."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph, RuntimeException
from torch import Tensor

import plugins_cuda
from tests.plugins_cuda.inputs import DeformCase, room_inputs
from tests.plugins_cuda.onnxruntime import nodes
from tests.plugins_cuda.onnxruntime.front import run_on
from tests.plugins_cuda.onnxruntime.nodes import Node, feeds_of, node_of, one_node, open_session, session_options

Errors = (Fail, InvalidArgument, InvalidGraph, RuntimeException)


def example(name: str, scale: int = 1, dtype: torch.dtype = torch.float32) -> Node:
    """A node with inputs that it takes."""
    room = nodes.ROOMS[name].name
    if room == "deform_conv":
        case = DeformCase(batch=scale, size=(4 * scale, 9 * scale), masked=name == "ModulatedDeformConv2d")
        found = node_of(plugins_cuda.deform_conv, **case.tensors(dtype), **case.steps)
    else:
        dtype = torch.float16 if name == "PaddedBatchedNms" else dtype  # whose inputs then have classes
        found = node_of(getattr(plugins_cuda, room), **room_inputs(room, scale, dtype))
    assert found[0] == name
    return found


EXAMPLES = {name: example(name) for name in nodes.OUTPUTS}


def run(node: Node, bodies: bool = False, options: onnxruntime.SessionOptions | None = None) -> list[np.ndarray]:
    name, tensors, attributes = node
    session = open_session(one_node(name, tensors, attributes, bodies), options or session_options())
    return session.run(None, feeds_of(tensors))


@pytest.mark.parametrize("name", EXAMPLES)
def test_kernels_run_in_the_place_of_bodies(name: str, tmp_path: Path) -> None:
    """One session takes inputs of several sizes."""
    _, tensors, attributes = example(name)
    model = one_node(name, tensors, attributes, bodies=True)
    options = session_options()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    session = open_session(model, options)
    for scale in (1, 3):
        other = example(name, scale)
        for found, expected in zip(session.run(None, feeds_of(other[1])), run(other), strict=True):
            np.testing.assert_array_equal(found, expected)
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = [each["args"]["op_name"] for each in events if each["name"].endswith("_kernel_time")]
    assert ran == [name, name]


@pytest.mark.parametrize("name", EXAMPLES)
def test_empty_tensors_that_the_session_made(name: str) -> None:
    """They are nowhere in memory: outputs of other nodes."""
    _, tensors, attributes = EXAMPLES[name]
    has_batch = ["DeformConv" not in name or index not in (2, 3) for index in range(len(tensors))]
    tensors = [tensor[:0] if batch else tensor for tensor, batch in zip(tensors, has_batch, strict=True)]
    model = one_node(name, tensors, attributes)
    node = model.graph.node[0]
    for index, batch in enumerate(has_batch):
        if batch:
            node.input[index] = f"made{index}"
            made = onnx.helper.make_node("Concat", [f"in{index}"] * 2, [f"made{index}"], axis=0)
            model.graph.node.insert(0, made)
    found = open_session(model, session_options()).run(None, feeds_of(tensors))
    assert all(each.shape[0] == 0 for each in found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_half_precision_is_not_cast(dtype: torch.dtype, tmp_path: Path) -> None:
    name, tensors, attributes = example("DeformConv2d", dtype=dtype)
    options = session_options()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    open_session(one_node(name, tensors, attributes, bodies=True), options)
    assert [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node] == [name]


def test_float64_is_refused_by_name() -> None:
    """ONNX Runtime looks for a body only where it knows no operator of the name."""
    name, tensors, attributes = example("DeformConv2d")
    tensors = [tensors[0].double(), tensors[1], tensors[2].double(), tensors[3]]
    with pytest.raises(InvalidGraph, match=r"'tensor\(double\)' of input parameter .* operator \(DeformConv2d\)"):
        run((name, tensors, attributes), bodies=True)


def test_types_that_no_kernel_takes_together() -> None:
    name, tensors, attributes = example("DeformConv2d")
    tensors = [tensors[0].half(), tensors[1], tensors[2], tensors[3]]
    with pytest.raises(Exception, match="no kernel def matches node inputs for Op: DeformConv2d"):
        run((name, tensors, attributes), bodies=True)


@pytest.mark.parametrize("name", EXAMPLES)
def test_missing_inputs_are_refused_by_name(name: str) -> None:
    _, tensors, attributes = EXAMPLES[name]
    for index in range(1, len(tensors)):
        given: list[Tensor | None] = [*tensors]
        given[index] = None
        with pytest.raises(InvalidGraph, match=f"{name}.*input {index} is marked single but has an empty string"):
            open_session(one_node(name, given, attributes), session_options())
    more_than_one = 5 if name == "DeformConv2d" else 2
    for wrong in (tensors[:-1], tensors + [tensors[1]] * more_than_one):
        with pytest.raises(InvalidGraph, match=f"upsnet::{name}:1. has input size {len(wrong)} not in range"):
            open_session(one_node(name, wrong, attributes), session_options())


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("PaddedNms", {"iou_threshold": None}, "attribute iou_threshold is missing"),
        ("PaddedNms", {"iou_threshold": 1}, "attribute iou_threshold is of another type"),
        ("PaddedNms", {"iou_threshold": 1.5}, "attribute iou_threshold must"),
        ("PaddedNms", {"iou_threshold": float("nan")}, "attribute iou_threshold is NaN"),
        ("PaddedNms", {"score_threshold": float("nan")}, "attribute score_threshold is NaN"),
        ("PaddedNms", {"max_output": 2**40}, "attribute max_output is out of range: 1099511627776"),
        ("PaddedNms", {"max_output": 2**31 - 1}, r"attribute max_output must be at most 2\^30"),
        ("PaddedBatchedNms", {"max_output": -1}, "attribute max_output must be at least 0"),
        ("PaddedBatchedNms", {"max_output": [3, 4]}, "attribute max_output is of another type"),
        ("PaddedNms", {"top_k": 5}, "attribute top_k"),
        ("RoiAlignFpn", {"output_size": 0}, "attribute output_size must be at least 1"),
        ("RoiAlignFpn", {"output_size": 2.0}, "attribute output_size is of another type"),
        (
            "RoiAlignFpn",
            {"output_size": 1025},
            "attributes output_size and sampling_ratio must multiply to at most 1024",
        ),
        ("RoiAlignFpn", {"coordinate_transformation_mode": "centre"}, "attribute coordinate_transformation_mode"),
        (
            "RoiAlignFpn",
            {"coordinate_transformation_mode": 1},
            "attribute coordinate_transformation_mode is of another",
        ),
        ("DeformConv2d", {"strides": [0, 1]}, "attribute strides must be at least 1"),
        ("DeformConv2d", {"strides": [1]}, "attribute strides holds 1 integers, not 2"),
        ("DeformConv2d", {"strides": "1 1"}, "attribute strides holds 0 integers, not 2"),
        ("DeformConv2d", {"dilations": [1, 2**31]}, "attribute dilations is out of range: 2147483648"),
        ("ModulatedDeformConv2d", {"pads": [0, 0, 0, -1]}, "attribute pads must be at least 0"),
        ("RoiAlignFpn", {"output_size": None}, "attribute output_size is missing"),
        ("PanopticFusion", {"num_stuff": 0}, "attribute num_stuff must be at least 1"),
        ("PanopticFusion", {"stuff_area_limit": "large"}, "attribute stuff_area_limit is of another type"),
    ],
    ids=str,
)
def test_wrong_attributes_are_refused_by_name(name: str, wrong: dict[str, Any], message: str) -> None:
    _, tensors, attributes = EXAMPLES[name]
    attributes = {key: value for key, value in {**attributes, **wrong}.items() if value is not None}
    with pytest.raises(RuntimeException, match=f"upsnet::{name}: {message}"):
        open_session(one_node(name, tensors, attributes, bodies=True), session_options())


def resized(name: str, index: int, shape: list[int], kind: Callable[..., Tensor] = torch.zeros) -> Node:
    """The example, with another size of one input."""
    _, tensors, attributes = EXAMPLES[name]
    tensors = [*tensors]
    tensors[index] = kind(shape, dtype=tensors[index].dtype)
    return name, tensors, attributes


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (resized("PaddedNms", 0, [1, 63, 5]), r"boxes is \[1 63 5\], not \[B N 4\]"),
        (resized("PaddedNms", 1, [1, 62]), r"scores is \[1 62\], not \[B N\] B=1 N=63"),
        (resized("PaddedBatchedNms", 2, [1, 63, 1]), r"classes is \[1 63 1\], not \[B N\]"),
        (resized("PaddedNms", 0, [4]), r"boxes is \[4\], not \[B N 4\]"),
        (resized("PaddedNms", 0, []), r"boxes is \[\], not \[B N 4\]"),
        (resized("PaddedNms", 0, [1] * 9), "boxes has 9 dimensions"),
        (resized("PaddedNms", 0, [0, 2**31, 4]), r"boxes is \[0 2147483648 4\], not \[B N 4\]"),
        (resized("RoiAlignFpn", 3, [1, 9, 2, 2]), r"P5.* is \[1 9 2 2\], not"),
        (resized("RoiAlignFpn", 4, [2, 2, 4]), r"rois is \[2 2 4\], not \[B R 4\] B=1"),
        (resized("DeformConv2d", 0, [1, 9, 4, 9]), "x's channels are not weight's channels times group"),
        (resized("DeformConv2d", 0, [1, 8, 0, 9]), "offset's height and width are not the output's|larger than the"),
        (resized("DeformConv2d", 2, [4, 8, 0, 3]), "x has no channels, or the kernel has no taps"),
        (resized("ModulatedDeformConv2d", 4, [1, 8, 4, 9]), "mask's channels are not"),
        (resized("PanopticFusion", 0, [1, 2, 3, 10]), "semantic has fewer channels than num_stuff"),
        (resized("PanopticFusion", 4, [1, 2, 5, 4]), r"mask_logits is \[1 2 5 4\], not \[B N M M\]"),
        (resized("PanopticFusion", 4, [1, 2, 600, 600]), "no kernel runs"),
    ],
    ids=str,
)
def test_wrong_sizes_are_refused_by_name(node: Node, message: str) -> None:
    with pytest.raises(InvalidArgument, match=f"running {node[0]} node.*upsnet::{node[0]}: .*({message})"):
        run(node)


sizes = st.one_of(st.integers(0, 9), st.sampled_from([2**16, 2**31 - 1, 2**31, 2**40]))
numbers = {
    int: st.one_of(st.integers(-1, 9), st.sampled_from([1000, 2**31 - 1, 2**31, 2**62])),
    float: st.floats(width=32),
    str: st.sampled_from(["half_pixel", "output_half_pixel", ""]),
}


@st.composite
def drawn_nodes(draw: st.DrawFn) -> Node:
    """Of any sizes and attributes; what is larger than a megabyte is empty."""
    name = draw(st.sampled_from(sorted(EXAMPLES)))
    _, tensors, attributes = EXAMPLES[name]
    tensors, attributes = [*tensors], {**attributes}
    for index in draw(st.lists(st.integers(0, len(tensors) - 1), max_size=3)):
        shape = list(tensors[index].shape)
        if not shape or draw(st.booleans()):
            shape = draw(st.lists(sizes, max_size=6))
        else:
            shape[draw(st.integers(0, len(shape) - 1))] = draw(sizes)
        if np.prod([float(size) for size in shape]) > 2**18:
            shape[draw(st.integers(0, len(shape) - 1))] = 0
        if np.prod([float(size) or 1 for size in shape]) < 2.0**60:
            tensors[index] = torch.ones(shape, dtype=tensors[index].dtype)
    for key in draw(st.lists(st.sampled_from(sorted(attributes)), max_size=2)):
        if key == "max_output":  # an output of as many rows
            attributes[key] = draw(st.sampled_from([-1, 0, 3, 1000, 2**30 + 1, 2**62]))
        elif isinstance(attributes[key], list):
            attributes[key] = draw(st.lists(numbers[int], min_size=1, max_size=5))
        elif key not in ("plugin_version", "plugin_namespace"):
            attributes[key] = draw(numbers[draw(st.sampled_from([type(attributes[key])] * 3 + [int, float, str]))])
    return name, tensors, attributes


@settings(max_examples=150, deadline=None, derandomize=True)
@given(node=drawn_nodes())
def test_drawn_nodes_run_or_are_refused(node: Node) -> None:
    try:
        run(node)
    except Errors as error:
        assert f"upsnet::{node[0]}: " in str(error), error


@pytest.mark.parametrize("name", ["PaddedNms", "PanopticFusion"])
def test_outputs_of_another_size_are_refused(name: str) -> None:
    """Memory of the caller, bound to an output."""
    _, tensors, attributes = EXAMPLES[name]
    results = [torch.zeros(1, 7, 7, dtype=dtype or tensors[0].dtype) for dtype in nodes.OUTPUTS[name]]
    with pytest.raises(Exception, match="shape"):
        run_on(nodes.library_file(), name, tensors, attributes, results)


@pytest.mark.skipif(nodes.SANITIZED, reason="the address sanitizer ends the process")
def test_outputs_larger_than_any_memory() -> None:
    """2^49 bytes: ONNX Runtime's error."""
    tensors = [torch.zeros(2**16, 0, 4), torch.zeros(2**16, 0)]
    with pytest.raises(Exception, match=r"running PaddedNms node.*([Aa]lloc|memory)"):
        run(("PaddedNms", tensors, {**EXAMPLES["PaddedNms"][2], "max_output": 2**30}))


# The n-th allocation of our library throws, on whatever thread it is.
SHORT_OF_MEMORY = """
#include <dlfcn.h>
#include <malloc.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {
std::atomic<long> left{-1};
bool fails(void* caller) {
  Dl_info info;
  return left >= 0 && dladdr(caller, &info) && std::strstr(info.dli_fname, "upsnet_onnxruntime") && left-- == 0;
}
void* allocate(std::size_t bytes, std::size_t alignment, void* caller) {
  void* const memory = fails(caller) ? nullptr : memalign(alignment, bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
}  // namespace

#define CALLER __builtin_return_address(0)
void* operator new(std::size_t bytes) { return allocate(bytes, 16, CALLER); }
void* operator new[](std::size_t bytes) { return allocate(bytes, 16, CALLER); }
void* operator new(std::size_t bytes, std::align_val_t to) { return allocate(bytes, std::size_t(to), CALLER); }
void* operator new[](std::size_t bytes, std::align_val_t to) { return allocate(bytes, std::size_t(to), CALLER); }
extern "C" void* aligned_alloc(std::size_t to, std::size_t bytes) noexcept {
  return fails(CALLER) ? nullptr : memalign(to, bytes);
}
extern "C" void fail_after(long allocations) { left = allocations; }
extern "C" bool has_failed() { return left.exchange(-1) < 0; }
"""
ATTEMPTS = """
import ctypes
from tests.plugins_cuda.onnxruntime.test_nodes import *

shim = ctypes.CDLL(None)
shim.has_failed.restype = ctypes.c_bool
for name in EXAMPLES:
    _, tensors, attributes = example(name, 3)
    options = session_options(2)
    options.log_severity_level = 4
    model = one_node(name, tensors, attributes)
    session = open_session(model, options)
    expected = session.run(None, feeds_of(tensors))
    for what in ("run", "open"):
        for allocations in range(1000):
            shim.fail_after(allocations)
            try:
                if what == "run":
                    session.run(None, feeds_of(tensors))
                else:
                    open_session(model, options)
                failed = shim.has_failed()
                assert not failed, f"{name}: {allocations} allocations later, a failure that nobody told of"
                break
            except Errors as error:
                assert shim.has_failed() and f"upsnet::{name}: not enough memory" in str(error), error
        print(name, what, allocations)
        assert all(map(np.array_equal, session.run(None, feeds_of(tensors)), expected))
"""


@pytest.mark.skipif(nodes.SANITIZED, reason="operator new is the address sanitizer's")
def test_too_little_memory_is_an_error_wherever_it_ends(tmp_path: Path) -> None:
    """Of a kernel that is made or runs, on any thread of the session; the next call is as good as ever."""
    shim = tmp_path / "libshim.so"
    shim.with_suffix(".cpp").write_text(SHORT_OF_MEMORY)
    subprocess.run(["g++", "-std=c++17", "-O1", "-shared", "-fPIC", shim.with_suffix(".cpp"), "-o", shim], check=True)
    command, environment = [sys.executable, "-c", ATTEMPTS], os.environ | {"LD_PRELOAD": str(shim)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    tried = {tuple(line.split()[:2]): int(line.split()[2]) for line in done.stdout.splitlines()}
    assert len(tried) == 2 * len(EXAMPLES) and all(tried.values()), tried
