"""RoIAlign's gradient: the kernels (for CPU or GPU, emulated) against the definition, and how autograd sees it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import plugins_cuda
from plugins_cuda import library
from plugins_cuda.pytorch import layout_of
from plugins_cuda.roi_align_fpn.backward import reference, roi_align_fpn_backward
from plugins_cuda.roi_align_fpn.reference import assign_levels
from tests.plugins_cuda.conftest import COMPILED, Front, front_fixture
from tests.plugins_cuda.inputs import ALL_TYPES, LAYOUTS, SPECIAL_BOXES, pyramid

pytestmark = pytest.mark.numeric

front = front_fixture(COMPILED)
BROKEN = [[math.nan, 0, 30, 40], [0, 0, math.inf, 30], [0, -math.inf, 9, 30], [-3e38, -3e38, 3e38, 3e38]]


def boxes(batch: int = 2, count: int = 24) -> Tensor:
    """Of all levels, some of them partly or wholly outside an image of 256 x 384; then odd ones."""
    generator = torch.Generator().manual_seed(1)
    centre = torch.rand(batch, count, 2, generator=generator) * torch.tensor([440.0, 310.0]) - 25
    size = 2 ** (torch.rand(batch, count, 2, generator=generator) * 7 + 2)
    odd = torch.tensor([*SPECIAL_BOXES, *BROKEN]).expand(batch, -1, -1)
    return torch.cat([torch.cat([centre - size / 2, centre + size / 2], dim=-1), odd], dim=1)


def call(
    features: list[Tensor],
    rois: Tensor,
    size: int = 7,
    ratio: int = 2,
    flags: tuple[bool, bool, bool] = (True, False, False),
) -> list[Any]:
    """All arguments, the gradient of the result drawn."""
    shape = (*rois.shape[:2], features[0].shape[1], size, size)
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(size)).to(features[0].dtype)
    return [features, rois, size, ratio, *flags, grad]


def run(front: Front, arguments: list[Any]) -> tuple[Tensor, ...]:
    """Through the front; back on the CPU. In the features' types and memory formats."""
    features, rois, *options, grad = arguments
    there = [each.to(front.device) for each in features]
    found = roi_align_fpn_backward(there, rois.to(front.device), *options, grad.to(front.device))
    for one, feature in zip(found, there, strict=True):
        assert (one.shape, one.dtype) == (feature.shape, feature.dtype)
        assert layout_of([one]) == layout_of([feature])
    return tuple(each.cpu() for each in found)


def assert_equals_definition(front: Front, arguments: list[Any]) -> None:
    found, expected = run(front, arguments), reference.roi_align_fpn_backward(*arguments)
    eps = torch.finfo(arguments[0][0].dtype).eps
    for one, other in zip(found, expected, strict=True):
        scale = float(other.abs().max()) if other.numel() else 0.0
        torch.testing.assert_close(one, other, atol=scale * (eps if eps > 1e-4 else 100 * eps), rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", ALL_TYPES, ids=str)
@pytest.mark.parametrize(
    ("channels", "size", "ratio", "flags"),
    [
        (3, 7, 2, (True, False, False)),
        (40, 7, 2, (False, True, False)),  # no multiple of a CPU's group
        (5, 14, 0, (True, False, True)),
        (4, 3, 0, (False, False, False)),
        (140, 2, 3, (True, False, False)),  # several groups of channels
    ],
)
def test_equals_definition(
    front: Front, channels: int, size: int, ratio: int, flags: Any, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    features, rois = pyramid(2, channels, 64, 96, dtype, layout), boxes(2, 4 if channels == 140 else 24)
    assert len(set(assign_levels(rois).flatten().tolist())) == 4
    assert_equals_definition(front, call(features, rois, size, ratio, flags))


coordinate = st.one_of(st.integers(-100, 300).map(float), st.floats(-300, 500, width=32))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    corners=st.lists(st.tuples(coordinate, coordinate, coordinate, coordinate), max_size=6),
    numbers=st.tuples(st.integers(1, 8), st.integers(0, 3), st.integers(1, 9)),
    sides=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    kind=st.tuples(st.booleans(), st.sampled_from([torch.float64, torch.bfloat16]), st.sampled_from(LAYOUTS)),
)
def test_front_is_the_transpose_of_forward(
    front: Front, corners: list[Any], numbers: tuple[int, int, int], sides: tuple[int, int], kind: Any
) -> None:
    """Forward is linear: the sum of result * grad is that of features * their gradients. From the same taps, whatever
    is rounded."""
    (size, ratio, channels), (aligned, dtype, layout) = numbers, kind
    rois, features = torch.tensor(corners).reshape(1, -1, 4), pyramid(1, channels, *sides, dtype, layout)
    arguments = call(features, rois, size, ratio, (aligned, False, False))
    wide = [each.to(front.device, torch.promote_types(dtype, torch.float32)) for each in features]
    pooled = plugins_cuda.roi_align_fpn(wide, rois.to(front.device), *arguments[2:-1]).cpu().double()
    forward = pooled * arguments[-1].double()
    backward = torch.cat(
        [(a.double() * b.double()).flatten() for a, b in zip(run(front, arguments), features, strict=True)]
    )
    allowed = float(forward.abs().sum() + backward.abs().sum()) * (1e-2 if dtype == torch.bfloat16 else 1e-12)
    torch.testing.assert_close(backward.sum(), forward.sum(), rtol=0, atol=allowed)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("ratio", [2, 0])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_what_is_not_finite_reaches_the_pixels_under_its_bin(
    front: Front, value: float, ratio: int, layout: torch.memory_format
) -> None:
    """Those that it samples with a weight, and no others."""
    arguments = call(pyramid(2, 3, 24, 32, layout=layout), boxes() / 2, 7, ratio)
    grad = arguments[-1]
    for bin_of_box in ((0, 1, 0, 3, 4), (1, 9, 2, 0, 6), (1, 25, 1, 6, 0)):
        grad.zero_()[bin_of_box] = 1.0
        weights = run(front, arguments)
        grad[bin_of_box] = value
        for found, weight in zip(run(front, arguments), weights, strict=True):
            assert torch.equal(~found.isfinite(), weight > 0)
            assert not found[weight == 0].any()


@pytest.mark.parametrize("dtype", ALL_TYPES, ids=str)
def test_front_has_nothing_to_do(front: Front, dtype: torch.dtype) -> None:
    features = pyramid(dtype=dtype)
    for maps, rois in (
        (features, torch.zeros(2, 0, 4)),
        ([each[:0] for each in features], torch.zeros(0, 5, 4)),
        ([each[:, :0] for each in features], torch.zeros(2, 5, 4)),
        ([each[:, :, :0] for each in features], torch.zeros(2, 5, 4)),
        (features, torch.tensor(BROKEN).expand(2, -1, -1)[:, :3]),
    ):
        assert not any(each.any() for each in run(front, call(maps, rois)))


@pytest.mark.parametrize("empty", [[0], [1, 2], [3]])
def test_front_leaves_levels_without_pixels_out(front: Front, empty: list[int]) -> None:
    features = pyramid()
    for index in empty:
        features[index] = features[index][:, :, :0] if index % 2 else features[index][..., :0]
    assert_equals_definition(front, call(features, boxes()))


def test_front_sums_in_one_order(front: Front) -> None:
    """Many boxes on the same pixels: twice the same bits."""
    rois = boxes(1, 300) / 3
    arguments = call(pyramid(1, 8, 24, 32), rois)
    assert all(map(torch.equal, run(front, arguments), run(front, arguments)))
    assert_equals_definition(front, arguments)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", ALL_TYPES, ids=str)
def test_cpu_threads_do_not_matter(dtype: torch.dtype, layout: torch.memory_format) -> None:
    arguments = call(pyramid(2, 40, dtype=dtype, layout=layout), boxes())
    alone = roi_align_fpn_backward(*arguments)
    for threads in (2, 3, 5):
        torch.set_num_threads(threads)
        assert all(map(torch.equal, roi_align_fpn_backward(*arguments), alone))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("channels", [40, 5])
def test_emulated_threads_in_any_order(
    monkeypatch: pytest.MonkeyPatch, other_order: None, channels: int, layout: torch.memory_format
) -> None:
    arguments = call(pyramid(1, channels, 24, 32, layout=layout), boxes(1))
    found = roi_align_fpn_backward(*arguments)
    monkeypatch.delenv("UPSNET_EMULATOR_ORDER")
    assert all(map(torch.equal, found, roi_align_fpn_backward(*arguments)))


def test_emulated_gradient_is_the_derivative() -> None:
    features = [each.double().requires_grad_() for each in pyramid(1, 1, 16, 8)]
    rois = torch.tensor([[[1.0, 2, 12, 18], [-80, -75, 70, 75], [-290, -280, 190, 200]]])
    with library.emulation():
        for ratio in (2, 0):
            assert torch.autograd.gradcheck(
                lambda *maps, ratio=ratio: plugins_cuda.roi_align_fpn(maps, rois, 3, ratio), features, fast_mode=True
            )


# --- autograd --------------------------------------------------------------------------------------------------------


def pooled(features: list[Tensor], rois: Tensor) -> Tensor:
    return plugins_cuda.roi_align_fpn(features, rois, 7).square()


def test_cpu_gradient_under_compile() -> None:
    """One graph, forward and backward."""
    results = []
    for function in (pooled, torch.compile(pooled, fullgraph=True, backend="aot_eager")):
        features = [each.requires_grad_() for each in pyramid(1)]
        results.append(torch.autograd.grad(function(features, boxes(1)).sum(), features))
    assert all(map(torch.equal, *results))


def test_cpu_gradient_has_none() -> None:
    features, rois = [each.requires_grad_() for each in pyramid(1)], boxes(1).requires_grad_()
    result = pooled(features, rois)
    (of_rois,) = torch.autograd.grad(result.sum(), rois, allow_unused=True, retain_graph=True)
    assert of_rois is None
    once = torch.autograd.grad(result.sum(), features, create_graph=True)
    with pytest.raises(RuntimeError, match="roi_align_fpn_backward: a gradient has no gradient here; differentiate"):
        torch.autograd.grad(once[0].sum(), features[0])


def test_cpu_gradient_of_maps_in_several_layouts() -> None:
    rois = boxes()
    features = [each.contiguous(memory_format=LAYOUTS[index % 2 == 0]) for index, each in enumerate(pyramid())]
    expected = roi_align_fpn_backward(*call(pyramid(), rois))
    assert all(map(torch.equal, roi_align_fpn_backward(*call(features, rois)), expected))
