"""Deformable convolution on every front against the reference in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import plugins_cuda
from plugins_cuda.deform_conv import reference
from tests.plugins_cuda.conftest import Front, assert_one_operator
from tests.plugins_cuda.inputs import ALL_TYPES, LAYOUTS, TYPES, DeformCase

pytestmark = pytest.mark.numeric


class Case(DeformCase):
    """A convolution that is run and held against the definition."""

    def run(self, front: Front, tensors: dict[str, Any]) -> Tensor:
        return front.run(plugins_cuda.deform_conv, **tensors, **self.steps)

    def exact(self, tensors: dict[str, Any]) -> Tensor:
        wide = {name: tensor.double() for name, tensor in tensors.items()}
        return reference.deform_conv(**wide, **self.steps)

    def same_precision(self, tensors: dict[str, Any]) -> Tensor:
        """PyTorch's own way in the type of x: a column buffer of that type, and a matrix product with wide sums."""
        x, weight = tensors["x"], tensors["weight"]
        wide = torch.promote_types(x.dtype, torch.float32)
        taps = self.kernel[0] * self.kernel[1]
        pick = torch.eye(self.channels * taps, dtype=wide, device=x.device).reshape(-1, self.channels, *self.kernel)
        samples = {**tensors, "x": x.to(wide), "weight": pick, "bias": None}
        columns = reference.deform_conv(**samples, **self.steps).to(x.dtype)
        columns = columns.reshape(self.batch, self.groups, -1, columns.shape[2] * columns.shape[3]).to(wide)
        product = weight.reshape(self.groups, self.out_channels // self.groups, -1).to(wide) @ columns
        product = product.reshape(self.batch, self.out_channels, -1) + tensors["bias"][:, None]
        return product.to(x.dtype).reshape(self.batch, self.out_channels, *tensors["offset"].shape[2:])

    def check(self, dtype: torch.dtype, layout: torch.memory_format, front: Front) -> Tensor:
        """Runs it; the error may be twice that of the same-precision reference."""
        tensors = self.tensors(dtype, layout, front.device)
        out, exact = self.run(front, tensors), self.exact(tensors)
        assert (out.dtype, out.shape) == (dtype, exact.shape)
        assert out.is_contiguous(memory_format=layout)
        allowed = 2 * (self.same_precision(tensors).double() - exact).abs().max()
        # One rounding of the largest result, and sums in another order.
        wide = torch.promote_types(dtype, torch.float32)
        depth = tensors["weight"][0].numel()
        floor = (torch.finfo(dtype).eps + torch.finfo(wide).eps * depth**0.5) * max(1.0, exact.abs().max())
        assert (out.double() - exact).abs().max() <= allowed + floor
        return out


CASES = {
    "plain": Case(),
    "masked": Case(masked=True, batch=2),
    "ragged": Case(channels=37, out_channels=5, size=(9, 17)),
    "two chunks, two output tiles": Case(channels=40, out_channels=130, size=(3, 4), kernel=(1, 2)),
    "strides": Case(stride=(2, 3), padding=(2, 0), size=(11, 12)),
    "dilations": Case(dilation=(2, 3), padding=(2, 3), masked=True),
    "even kernel": Case(kernel=(2, 4), padding=(1, 2), size=(6, 5)),
    "kernel larger than the samples kept": Case(kernel=(5, 3), padding=(2, 1), channels=3),
    "1x1 map and kernel": Case(kernel=(1, 1), padding=(0, 0), size=(1, 1)),
    "1x1 map": Case(size=(1, 1), channels=1, out_channels=1),
    "groups": Case(channels=32, out_channels=6, groups=2, size=(4, 4)),
    "depthwise": Case(channels=4, out_channels=4, groups=4, masked=True),
    "offset groups": Case(channels=16, offset_groups=2, masked=True, size=(4, 4)),
    "groups across offset groups": Case(channels=12, out_channels=6, groups=3, offset_groups=2, size=(4, 4)),
    "far offsets": Case(spread=20.0),
}


@pytest.mark.parametrize("name", CASES)
def test_within_twice_the_error_of_the_same_precision(front: Front, name: str) -> None:
    for index, dtype in enumerate(ALL_TYPES):
        # Every type meets both layouts over the cases.
        layout = LAYOUTS[(index + list(CASES).index(name)) % 2]
        CASES[name].check(dtype, layout, front)


@pytest.mark.parametrize("size", [(88, 120), (129, 121)])
def test_larger_maps(front: Front, size: tuple[int, int]) -> None:
    """88 and 136 blocks of pixels: the launcher splits the steps in two, and not at all."""
    case = Case(channels=52, size=size, kernel=(1, 4), padding=(0, 0))
    case.check(torch.float32, torch.contiguous_format, front)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", ALL_TYPES, ids=str)
def test_types_and_layouts(front: Front, dtype: torch.dtype, layout: torch.memory_format) -> None:
    case = Case(channels=16, out_channels=8, batch=2, size=(4, 5))
    case.check(dtype, layout, front)
    replace(case, channels=5).check(dtype, layout, front)


# On the CPU alone: small enough to be drawn often.
@pytest.mark.parametrize("name", ["cpu", "training"])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    case=st.builds(
        Case,
        batch=st.integers(1, 2),
        channels=st.sampled_from([4, 8, 12, 64]),
        size=st.tuples(st.integers(1, 9), st.integers(1, 20)),
        out_channels=st.sampled_from([4, 12, 20]),
        kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
        stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
        padding=st.tuples(st.integers(2, 4), st.integers(2, 4)),
        groups=st.sampled_from([1, 2, 4]),
        offset_groups=st.sampled_from([1, 2, 4]),
        masked=st.booleans(),
        spread=st.sampled_from([0.0, 0.5, 5.0]),
    ),
    dtype=st.sampled_from(ALL_TYPES),
    layout=st.sampled_from(LAYOUTS),
)
def test_drawn_cases(name: str, case: Case, dtype: torch.dtype, layout: torch.memory_format) -> None:
    case.check(dtype, layout, Front(name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_hostile_offsets_sample_zero(front: Front, dtype: torch.dtype) -> None:
    case = Case(size=(4, 5), channels=8)
    tensors = case.tensors(dtype, device=front.device)
    hostile = torch.tensor([1e9, -1e9, 3e38, float("inf"), float("-inf"), float("nan"), -(2.0**31)])
    for axis in (0, 1):
        offset = torch.zeros_like(tensors["offset"])
        shifted = offset[:, axis::2]
        offset[:, axis::2] = hostile[torch.arange(shifted.numel()) % 7].reshape(shifted.shape).to(offset)
        out = case.run(front, {**tensors, "offset": offset})
        torch.testing.assert_close(out, tensors["bias"].to(dtype)[None, :, None, None].expand_as(out))


def test_infinite_features_stay_where_they_are(front: Front) -> None:
    case = Case(size=(4, 6), channels=8, spread=0.4)
    tensors = case.tensors(device=front.device)
    tensors["x"][0, 2, 0, 0] = float("inf")
    tensors["x"][0, 5, 3, 5] = float("nan")
    out, expected = case.run(front, tensors), case.exact(tensors)
    assert torch.equal(out.isfinite(), expected.isfinite())
    finite = expected.isfinite()
    torch.testing.assert_close(out[finite], expected[finite].float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_an_infinite_first_pixel_reaches_no_sample_outside(front: Front, masked: bool) -> None:
    case = Case(size=(4, 6), channels=8, masked=masked)
    tensors = case.tensors(device=front.device)
    tensors["offset"].fill_(100.0)
    tensors["x"][..., 0, 0] = float("inf")
    out = case.run(front, tensors)
    torch.testing.assert_close(out, tensors["bias"][None, :, None, None].expand_as(out))


def test_border(front: Front) -> None:
    """Half a pixel outside, half of the border's value is there; a whole pixel outside, nothing."""
    x, weight = torch.full((1, 8, 2, 3), 4.0, device=front.device), torch.zeros(1, 8, 1, 1, device=front.device)
    weight[0, 0] = 1
    for y, expected in ((-1.0, 0.0), (-0.5, 2.0), (0.0, 4.0), (1.0, 4.0), (1.5, 2.0), (2.0, 0.0)):
        offset = torch.zeros(1, 2, 2, 3, device=front.device)
        offset[0, 0, 0], offset[0, 0, 1] = y, y - 1
        out = front.run(plugins_cuda.deform_conv, x, offset, weight, padding=0)
        assert torch.equal(out, torch.full_like(out, expected))


def test_empty_batch(front: Front) -> None:
    case = Case(batch=2)
    tensors = case.tensors(torch.float16, device=front.device)
    empty = {name: tensor[:0] if name in ("x", "offset") else tensor for name, tensor in tensors.items()}
    assert case.run(front, empty).shape == (0, 4, 5, 7)
    masked = Case(batch=0, masked=True, groups=2)
    assert masked.run(front, masked.tensors(torch.bfloat16, device=front.device)).shape == (0, 4, 5, 7)


def test_any_strides_of_the_tensors(front: Front) -> None:
    case = Case(channels=8, masked=True)
    tensors = case.tensors(device=front.device)
    expected = case.run(front, tensors)
    apart = {name: torch.stack([tensor, tensor], -1)[..., 0] for name, tensor in tensors.items()}
    assert not any(tensor.is_contiguous() for tensor in apart.values())
    assert torch.equal(case.run(front, apart), expected)


@pytest.mark.parametrize("out_channels", [4, 130])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_emulated_threads_of_a_block_in_any_order(
    monkeypatch: pytest.MonkeyPatch, other_order: None, dtype: torch.dtype, out_channels: int
) -> None:
    case = Case(channels=40, out_channels=out_channels, kernel=(4, 3), size=(3, 4))
    tensors = case.tensors(dtype)
    found = case.run(Front("emulated"), tensors)
    monkeypatch.delenv("UPSNET_EMULATOR_ORDER")
    assert torch.equal(found, case.run(Front("emulated"), tensors))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_the_networks_sizes_on_a_gpu(dtype: torch.dtype) -> None:
    for channels, size in ((256, (200, 336)), (128, (25, 42))):
        case = Case(channels=channels, out_channels=128, size=size)
        for layout in LAYOUTS:
            case.check(dtype, layout, Front("cuda"))


def test_more_threads_give_the_same() -> None:
    case = Case(batch=2, size=(13, 17), channels=24)
    tensors = case.tensors()
    expected = case.run(Front("cpu"), tensors)
    torch.set_num_threads(3)
    assert torch.equal(case.run(Front("cpu"), tensors), expected)


def test_one_operator_for_pytorch() -> None:
    case = Case(masked=True)
    tensors = case.tensors(layout=torch.channels_last)
    x, offset, weight, bias, mask = (tensors[name] for name in ("x", "offset", "weight", "bias", "mask"))
    for one_bias, one_mask in ((bias, mask), (None, None)):
        torch.library.opcheck(
            torch.ops.upsnet.deform_conv.default, (x, offset, weight, one_bias, [1, 1], [1, 1], [1, 1], one_mask)
        )
    assert_one_operator("deform_conv", plugins_cuda.deform_conv, (x, offset, weight))
