"""What the blocks of deformable convolution's kernels decide: which way a warp gathers, where a split begins, how the
result is written. Emulated."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plugins_cuda import library
from plugins_cuda.pytorch import NCHW, NHWC
from tests.plugins_cuda.conftest import Front, prepared
from tests.plugins_cuda.inputs import LAYOUTS, TYPES
from tests.plugins_cuda.test_deform_conv_kernels import Case
from tests.plugins_cuda.test_workspace import size_of

pytestmark = pytest.mark.numeric
EMULATED = Front("emulated")
HALVES = [torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def emulated() -> Iterator[None]:
    with library.emulation():
        yield


@pytest.mark.parametrize("out_channels", [129, 200, 256, 300])
def test_several_tiles_of_outputs(out_channels: int) -> None:
    case = Case(channels=40, out_channels=out_channels, size=(3, 8), kernel=(2, 2))
    for dtype, layout in ((torch.float16, LAYOUTS[0]), (torch.bfloat16, LAYOUTS[1]), (torch.float32, LAYOUTS[1])):
        case.check(dtype, layout, EMULATED)


SPLIT = {
    "between chunks": (Case(channels=96, size=(5, 7)), 3),
    "within a chunk": (Case(channels=200, size=(5, 7), kernel=(2, 2)), 3),
    "fewer steps than taps": (Case(channels=32, size=(6, 7), kernel=(5, 5), padding=(2, 2)), 3),
    "rounds of taps": (Case(channels=64, size=(5, 7), kernel=(4, 3)), 3),
    "some with none in a round": (Case(channels=8, size=(9, 12), kernel=(5, 8), padding=(2, 4)), 5),
    "groups": (Case(channels=96, out_channels=6, groups=2, size=(5, 7), masked=True), 2),
    "two images, ragged": (Case(batch=2, channels=75, out_channels=70, size=(9, 17)), 3),
}


@pytest.mark.parametrize("name", SPLIT)
def test_splits(name: str) -> None:
    case, splits = SPLIT[name]
    outputs = case.batch * case.out_channels * case.size[0] * case.size[1]
    for dtype, layout in zip(HALVES, LAYOUTS, strict=True):
        out = case.check(dtype, layout, EMULATED)
        letters = {"B": case.batch, "C": case.channels, "D": case.channels // case.groups, "O": case.out_channels}
        letters |= {"H": case.size[0], "W": case.size[1], "Ho": out.shape[2], "Wo": out.shape[3]}
        letters |= dict(zip(("kh", "kw"), case.kernel, strict=True), P=2 * case.kernel[0] * case.kernel[1])
        numbers = {"group": case.groups, "offset_group": 1}
        wide = size_of("deform_conv", letters, dtype, NHWC, **numbers)
        one_pixel = size_of("deform_conv", {**letters, "H": 1, "W": 1, "Ho": 1, "Wo": 1}, dtype, NHWC, **numbers)
        assert abs(wide - one_pixel - splits * outputs * 4) < 1024 + splits * case.batch * case.out_channels * 4


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("channels", [32, 40, 37], ids=["whole chunks", "a ragged chunk", "unaligned"])
def test_infinite_pixels_reach_what_samples_them(
    dtype: torch.dtype, layout: torch.memory_format, channels: int
) -> None:
    """On borders and inside: some warps sample the map alone, others what lies outside, too."""
    case = Case(channels=channels, size=(19, 35), spread=0.6, kernel=(2, 3))
    tensors = case.tensors(dtype, layout)
    x, inf = tensors["x"], float("inf")
    for row, column in ((0, 0), (18, 34), (0, 17), (9, 0), (18, 5), (4, 34)):
        x[0, (row + column) % channels, row, column] = inf
    x[0, channels - 1, 9, 20] = float("nan")
    x[0, 0, 14, 20] = -inf
    out, expected = case.run(EMULATED, tensors), case.exact(tensors)
    finite = expected.isfinite()
    assert 0.2 < finite.float().mean() < 0.98
    assert torch.equal(out.isfinite(), finite)
    assert torch.equal(out.isnan(), expected.isnan())
    tolerance = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 2e-1}[dtype]
    torch.testing.assert_close(out[finite].double(), expected[finite], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("depth", [24, 21])
def test_infinite_channels_stay_in_their_group(dtype: torch.dtype, depth: int) -> None:
    """The chunk of a group ends within the next one's channels."""
    case = Case(channels=3 * depth, out_channels=6, groups=3, size=(12, 20), spread=0.5)
    for layout in LAYOUTS:
        tensors = case.tensors(dtype, layout)
        tensors["x"][:, depth : 2 * depth] = float("inf")
        out = case.run(EMULATED, tensors)
        assert out[:, :2].isfinite().all() and out[:, 4:].isfinite().all() and not out[:, 2:4].isfinite().any()


@pytest.mark.parametrize(
    ("out_channels", "groups", "size"), [(24, 1, (5, 24)), (24, 2, (9, 17)), (16, 2, (5, 8)), (12, 1, (8, 16))]
)
def test_writing_in_units_of_16_bytes_and_otherwise(out_channels: int, groups: int, size: tuple[int, int]) -> None:
    case = Case(channels=16, out_channels=out_channels, groups=groups, size=size, masked=True)
    for dtype in TYPES:
        for layout in LAYOUTS:
            case.check(dtype, layout, EMULATED)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_an_output_that_begins_within_a_unit(layout: torch.memory_format) -> None:
    case = Case(channels=16, out_channels=16, size=(5, 16))
    for dtype in TYPES:
        tensors = case.tensors(dtype, layout)
        params, (wanted,), _held = prepared("deform_conv", {**tensors, **case.steps, "mask": None})
        served = library.load("emulated")
        workspace = torch.empty(served.workspace_size("deform_conv", params), dtype=torch.uint8)
        served.run("deform_conv", params, torch.device("cpu"), workspace)
        memory = torch.zeros(wanted.numel() + 2, dtype=dtype)
        params.output = memory.data_ptr() + memory.element_size()
        served.run("deform_conv", params, torch.device("cpu"), workspace)
        assert torch.equal(memory[1:-1], in_memory_order(wanted, layout)) and memory[0] == memory[-1] == 0


def in_memory_order(tensor: Tensor, layout: torch.memory_format) -> Tensor:
    return (tensor.permute(0, 2, 3, 1) if layout == torch.channels_last else tensor).flatten()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    case=st.builds(
        Case,
        batch=st.integers(1, 2),
        channels=st.sampled_from([12, 24, 96]),
        size=st.tuples(st.integers(1, 12), st.integers(1, 24)),
        out_channels=st.sampled_from([4, 12, 68]),
        kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
        stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
        padding=st.tuples(st.integers(3, 6), st.integers(3, 6)),
        dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
        groups=st.sampled_from([1, 2, 4]),
        offset_groups=st.sampled_from([1, 2, 4]),
        masked=st.booleans(),
        spread=st.sampled_from([0.0, 0.5, 5.0]),
    ),
    dtype=st.sampled_from(TYPES),
    layout=st.sampled_from(LAYOUTS),
)
def test_drawn_cases(case: Case, dtype: torch.dtype, layout: torch.memory_format) -> None:
    case.check(dtype, layout, EMULATED)


def test_a_layout_has_no_say_in_the_splits() -> None:
    letters = {"B": 1, "C": 256, "D": 256, "O": 128, "H": 25, "W": 42, "Ho": 25, "Wo": 42, "kh": 3, "kw": 3, "P": 18}
    sizes = [size_of("deform_conv", letters, torch.float16, layout, group=1, offset_group=1) for layout in (NCHW, NHWC)]
    assert sizes[0] - sizes[1] == 256 * 25 * 42 * 2  # the transposed features
