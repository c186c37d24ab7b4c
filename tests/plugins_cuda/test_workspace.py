"""The kernels' workspaces: enough for every smaller shape, as TensorRT wants it, and never left by a launch.

TensorRT asks once, at the largest shapes of a profile, and runs any smaller ones in what it was told.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plugins_cuda import library
from plugins_cuda.pytorch import FLOAT_TYPES, NCHW, NHWC
from plugins_cuda.schema import value_of
from tests.plugins_cuda.conftest import operator_of, params_class, prepared, schema_of
from tests.plugins_cuda.inputs import LARGEST, LAYOUTS, TYPES, room_inputs

Values = dict[str, Any]
CPU = torch.device("cpu")
GUARD = 1 << 24  # bytes before and behind a workspace: what is missing there must not be found in the heap


@functools.cache
def emulated() -> library.Library:
    return library.load("emulated")


def launch(room: str, values: Values, workspace: Tensor) -> list[Tensor]:
    params, outputs, _held = prepared(room, values)
    emulated().run(schema_of(room).name, params, CPU, workspace)
    return outputs


# --- shapes ----------------------------------------------------------------------------------------------------------


def size_of(room: str, letters: Mapping[str, int], dtype: torch.dtype, layout: int, **numbers: int) -> int:
    """workspace_size for the sizes that the letters of the declaration stand for, without any tensor."""
    schema = schema_of(room)
    params = params_class(room)()
    members = {a.name: [a.default] * a.count for a in schema.attributes if a.default is not None}
    members |= {name: [value_of(word, letters) for word in schema.of_each_level(s)] for name, s in schema.sizes.items()}
    members |= {
        attribute.name: [value_of(attribute.size, letters)] for attribute in schema.attributes if attribute.size
    }
    members |= {name: [number] for name, number in numbers.items()}
    for tensor in schema.tensors:
        if tensor.has_own_type:
            members |= {f"{tensor.name}_type": [FLOAT_TYPES[dtype]], f"{tensor.name}_layout": [layout]}
    for name, values in members.items():
        if len(values) > 1:
            getattr(params, name)[:] = values
        elif hasattr(params, name):
            setattr(params, name, values[0])
    return emulated().workspace_size(schema.name, params)


# The sizes that may grow, and how large they get; then attributes, which do not.
ROOMS: dict[str, tuple[dict[str, int], list[dict[str, int]]]] = {
    "nms": ({"B": 8, "N": 40_000}, [{"max_output": most} for most in (0, 1, 100, 1000)]),
    "roi_align_fpn": (
        {"B": 4, "C": 300, "R": 2000} | {f"{side}{level}": 1600 >> level for level in range(2, 6) for side in "HW"},
        [{"output_size": 7, "sampling_ratio": 2}, {"output_size": 28, "sampling_ratio": 1}],
    ),
    "roi_align_fpn/backward": (
        {"B": 4, "C": 300, "R": 2000} | {f"{side}{level}": 1600 >> level for level in range(2, 6) for side in "HW"},
        [{"output_size": size, "sampling_ratio": ratio} for size, ratio in ((7, 2), (28, 1), (7, 0))],
    ),
    "deform_conv": (
        {"B": 4, "depth": 300, "H": 200, "W": 340, "outputs": 300, "kh": 5, "kw": 5, "Ho": 200, "Wo": 340},
        [{"group": group, "offset_group": offsets} for group, offsets in ((1, 1), (2, 1), (3, 2), (1, 4))],
    ),
    "deform_conv/columns": (
        {"B": 4, "depth": 300, "H": 200, "W": 340, "K": 25, "Ho": 200, "Wo": 340},
        [{"offset_group": groups, "deterministic": mode} for groups in (1, 3) for mode in (0, 1)],
    ),
    "panoptic_fusion": (
        {"B": 4, "things": 100, "h": 340, "w": 340, "N": 105, "M": 56},
        [{"num_stuff": stuff, "heuristic": mode} for stuff in (1, 11, 53, 150) for mode in (0, 1)],
    ),
}


def letters_of(room: str, sizes: dict[str, int], attributes: dict[str, int]) -> dict[str, int]:
    """All letters of the declaration: channels are whole numbers of groups."""
    if room == "deform_conv":
        depth, offsets = sizes["depth"] * attributes["offset_group"], attributes["offset_group"]
        channels = {"C": depth * attributes["group"], "D": depth, "O": sizes["outputs"] * attributes["group"]}
        return sizes | channels | {"P": 2 * offsets * sizes["kh"] * sizes["kw"]}
    if room == "deform_conv/columns":
        offsets = attributes["offset_group"]
        return sizes | {"C": sizes["depth"] * offsets, "P": 2 * offsets * sizes["K"]}
    return sizes | attributes | {"C": sizes.get("C", attributes.get("num_stuff", 0) + sizes.get("things", 0))}


def larger_and_smaller(most: int) -> st.SearchStrategy[tuple[int, int]]:
    """Two sizes up to `most`, the larger one first; small ones as often as large ones."""
    larger = st.one_of(st.integers(1, most), st.integers(1, min(most, 16)), st.just(most))
    return larger.flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size)))


@pytest.mark.parametrize("room", ROOMS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_emulated_workspace_never_shrinks_when_sizes_grow(room: str, data: st.DataObject) -> None:
    most, kinds = ROOMS[room]
    attributes = data.draw(st.sampled_from(kinds))
    dtype, layout = data.draw(st.sampled_from(TYPES)), data.draw(st.sampled_from([NCHW, NHWC]))
    pairs = data.draw(st.fixed_dictionaries({name: larger_and_smaller(size) for name, size in most.items()}))
    large, small = ({name: pair[index] for name, pair in pairs.items()} for index in (0, 1))

    def asked(sizes: dict[str, int]) -> int:
        return size_of(room, letters_of(room, sizes, attributes), dtype, layout, **attributes)

    assert asked(large) >= asked(small)
    for name in most:  # one size at a time, too
        assert asked(large) >= asked({**large, name: small[name]})


def convolution_size(height: int, width: int, batch: int, layout: int) -> int:
    """256 -> 256 channels, 3 x 3, in half precision."""
    letters = {"B": batch, "C": 256, "D": 256, "O": 256, "kh": 3, "kw": 3, "P": 18}
    letters |= {"H": height, "W": width, "Ho": height, "Wo": width}
    return size_of("deform_conv", letters, torch.float16, layout)


@pytest.mark.parametrize("layout", [NCHW, NHWC])
@pytest.mark.parametrize(
    ("size", "largest", "splits"),
    [
        ((50, 84), (84, 84), 3),  # P4 of 800 x 1344: 7 x 6 tiles of pixels: 42 blocks, a third of 128
        ((64, 84), (168, 168), 2),  # P3 of 512 x 672: 48 blocks
        ((32, 42), (84, 84), 9),  # P4 of it: 12 blocks, and no fewer than 8 of 72 steps in a split
    ],
)
def test_emulated_split_channels_fit_what_the_default_profile_asks(
    size: tuple[int, int], largest: tuple[int, int], splits: int, layout: int
) -> None:
    """Batch 4, 1344 x 1344, where nothing is split."""
    weights, sums = 256 * 9 * 256 * 2, splits * 256 * size[0] * size[1] * 4
    copy, largest_copy = (2 * 256 * n * (layout == NCHW) for n in (size[0] * size[1], 4 * largest[0] * largest[1]))
    asked = convolution_size(*largest, 4, layout)
    for one in (convolution_size(*size, 1, layout), asked):
        assert one >= weights + sums + copy
    assert asked <= weights + 2**24 + largest_copy  # at most 16 MiB for the sums


@pytest.mark.parametrize("layout", [NCHW, NHWC])
def test_emulated_workspace_of_shapes_that_no_kernel_can_hold_is_no_smaller(layout: int) -> None:
    """A profile may end beyond what can run, and what lies below must run in what is asked there."""
    assert convolution_size(2**16, 2**16, 1, layout) >= convolution_size(2**7, 2**7, 1, layout) > 0
    letters = {"B": 2**16, "C": 60, "N": 100, "h": 2**15, "w": 2**15, "M": 28, "num_stuff": 53}
    fusion = [
        size_of("panoptic_fusion", {**letters, "h": side, "w": side}, torch.float32, layout) for side in (9, 2**15)
    ]
    assert 0 < fusion[0] < fusion[1]


# --- launches in what the largest shapes ask for ---------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("room", ROOMS)
def test_emulated_launches_stay_in_what_the_largest_shapes_ask(
    room: str, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    """Between guards; then in exactly as many bytes, for the address sanitizer. Full of what makes results wrong."""
    served = emulated()
    name = schema_of(room).name
    asked = served.workspace_size(name, prepared(room, room_inputs(room, LARGEST, dtype, layout))[0])
    for scale in (1, 2):
        values = room_inputs(room, scale, dtype, layout)
        wanted = operator_of(room)(**values)  # the CPU front
        own = served.workspace_size(name, prepared(room, values)[0])
        assert own <= asked
        memory = torch.full((own + 2 * GUARD,), 255, dtype=torch.uint8)
        guarded = launch(room, values, memory[GUARD : GUARD + own])
        written = [int((part != 255).sum()) for part in (memory[:GUARD], memory[GUARD + own :])]
        assert written == [0, 0]
        exact = launch(room, values, torch.full((asked,), 255, dtype=torch.uint8))
        for one, other, third in zip(exact, guarded, [wanted] if isinstance(wanted, Tensor) else wanted, strict=True):
            assert torch.equal(one, other)
            torch.testing.assert_close(one, third, atol=2e-3 if dtype == torch.float16 else 1e-5, rtol=1e-3)


@pytest.mark.parametrize("room", ROOMS)
def test_emulated_short_workspace_is_refused(room: str) -> None:
    values = room_inputs(room, 1, torch.float32, torch.contiguous_format)
    params, outputs, _held = prepared(room, values)
    served, name = emulated(), schema_of(room).name
    needed = served.workspace_size(name, params)
    for output in outputs:
        output.zero_()
    workspace = torch.zeros(needed, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match=f"^{name}: it needs a workspace of {needed} bytes, got {needed - 1}$"):
        served.run(name, params, CPU, workspace[:-1])
    start = served._operator(name, params).start
    assert start(ctypes.byref(params), workspace.data_ptr(), needed - 1, None) == 1  # cudaErrorInvalidValue
    for step in (1, 8):
        status = start(ctypes.byref(params), workspace.data_ptr() + step, needed, None)
        assert status == 716  # cudaErrorMisalignedAddress
    assert not any(tensor.any() for tensor in (*outputs, workspace))
