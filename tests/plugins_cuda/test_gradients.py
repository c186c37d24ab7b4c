"""What holds once a gradient is wanted, and under autocast: the same results, and gradients that are numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import deform_conv2d

import plugins_cuda
from plugins_cuda.roi_align_fpn import reference as roi_reference
from tests.plugins_cuda.conftest import FORWARD, Front
from tests.plugins_cuda.inputs import ALL_TYPES, LAYOUTS, DeformCase, crowd, fusion_inputs, pyramid

pytestmark = pytest.mark.numeric

DEFORM = {
    "plain": DeformCase(size=(6, 7), channels=4),
    "masked": DeformCase(size=(6, 7), channels=4, masked=True),
    "groups": DeformCase(size=(6, 7), channels=4, groups=2),
    "offset groups": DeformCase(size=(6, 7), channels=4, offset_groups=2, masked=True),
    "steps": DeformCase(size=(9, 11), channels=4, kernel=(3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
}
NOT_FINITE = [math.nan, math.inf, -math.inf]


def trained(call: Callable[..., Tensor], tensors: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The result, and the gradients of its sum with changing signs."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}
    result = call(**leaves)
    signs = torch.arange(result.numel()).remainder(4).sub(1).view(result.shape).to(result)
    gradients = torch.autograd.grad((result * signs).sum(), list(leaves.values()))
    return result.detach(), dict(zip(leaves, gradients, strict=True))


def moved(value: Any, device: torch.device) -> Any:
    """The tensors of it are on the device."""
    if isinstance(value, dict):
        return {name: moved(each, device) for name, each in value.items()}
    if isinstance(value, list):
        return [moved(each, device) for each in value]
    return value.to(device) if isinstance(value, Tensor) else value


# --- deform_conv -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ALL_TYPES, ids=str)
@pytest.mark.parametrize("name", DEFORM)
def test_deform_conv_trains_like_torchvision(name: str, dtype: torch.dtype) -> None:
    """The result, and every gradient, of torchvision in float64 from the same numbers."""
    case = DEFORM[name]
    tensors = case.tensors(dtype)
    found = trained(lambda **given: plugins_cuda.deform_conv(**given, **case.steps), tensors)

    def exact(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None = None) -> Tensor:
        return deform_conv2d(x, offset, weight, bias, **case.steps, mask=mask)

    wide = {name: tensor.double() for name, tensor in tensors.items()}
    expected = trained(exact, wide)
    tolerance = 4 * torch.finfo(dtype).eps if dtype.itemsize == 2 else 1e-5  # 16-bit: one rounding of each number
    for name, gradient in {"result": found[0], **found[1]}.items():
        wanted = {"result": expected[0], **expected[1]}[name]
        assert gradient.dtype == (dtype if name == "result" else tensors[name].dtype)
        scale = wanted.abs().max()
        torch.testing.assert_close(gradient.double() / scale, wanted / scale, atol=tolerance, rtol=0, msg=name)


@pytest.mark.parametrize("name", DEFORM)
def test_deform_convs_gradient_is_the_derivative(name: str) -> None:
    case = replace(DEFORM[name], size=(3, 4), channels=2, out_channels=2, spread=0.3)
    tensors = {name: tensor.double() for name, tensor in case.tensors().items()}
    assert torch.autograd.gradcheck(
        lambda *given: plugins_cuda.deform_conv(**dict(zip(tensors, given, strict=True)), **case.steps),
        [tensor.requires_grad_() for tensor in tensors.values()],
    )


def broken_and_far(case: DeformCase, dtype: torch.dtype, value: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The case with two offsets that are not finite; and with two that lead off the map instead."""
    broken, far = case.tensors(dtype), case.tensors(dtype)
    for channel, row, column, away in ((1, 2, 3, -1e6), (4, 1, 1, 1e6)):  # dx of the first tap, dy of the third
        broken["offset"][0, channel, row, column] = value
        far["offset"][0, channel, row, column] = away
    return broken, far


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("dtype", ALL_TYPES, ids=str)
@pytest.mark.parametrize("name", DEFORM)
def test_an_offset_that_is_not_finite_is_one_off_the_map(
    front: Front, name: str, dtype: torch.dtype, value: float
) -> None:
    case = DEFORM[name]
    found, expected = (
        front.run(plugins_cuda.deform_conv, **moved(tensors, front.device), **case.steps)
        for tensors in broken_and_far(case, dtype, value)
    )
    assert torch.equal(found, expected) and found.isfinite().all()


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("dtype", ALL_TYPES, ids=str)
@pytest.mark.parametrize("name", DEFORM)
def test_an_offset_that_is_not_finite_has_no_gradient(
    name: str, dtype: torch.dtype, narrow: bool, value: float
) -> None:
    case = DEFORM[name]
    both = broken_and_far(case, dtype, value)
    if narrow:  # the offsets too are in the type of x
        both[0]["offset"], both[1]["offset"] = (tensors["offset"].to(dtype) for tensors in both)
    gradients, expected = (
        trained(lambda **given: plugins_cuda.deform_conv(**given, **case.steps), tensors)[1] for tensors in both
    )
    for tensor, gradient in gradients.items():
        assert torch.equal(gradient, expected[tensor]) and gradient.isfinite().all(), tensor
    assert not gradients["offset"][0, :2, 2, 3].any() and not gradients["offset"][0, 4:6, 1, 1].any()


@pytest.mark.parametrize("name", DEFORM)
def test_training_samples_at_float32_coordinates(name: str) -> None:
    """A column like 199.3 has no bfloat16: the result is that of inference all the same."""
    case = replace(DEFORM[name], size=(12, 200))
    tensors = case.tensors(torch.bfloat16)
    tensors["offset"] = tensors["offset"].bfloat16()
    inference = plugins_cuda.deform_conv(**tensors, **case.steps)
    training, _ = trained(lambda **given: plugins_cuda.deform_conv(**given, **case.steps), tensors)
    scale = inference.abs().max().float()
    torch.testing.assert_close(training.float() / scale, inference.float() / scale, atol=0.01, rtol=0)


@pytest.mark.parametrize("name", DEFORM)
def test_an_infinite_first_pixel_reaches_no_gradient_of_samples_outside(name: str) -> None:
    tensors = DEFORM[name].tensors()
    tensors["offset"].fill_(100.0)
    tensors["x"][..., 0, 0] = math.inf
    _, gradients = trained(lambda **given: plugins_cuda.deform_conv(**given, **DEFORM[name].steps), tensors)
    assert gradients.pop("bias").all()
    assert not any(gradient.any() for gradient in gradients.values())


# --- roi_align_fpn ---------------------------------------------------------------------------------------------------


def some_rois(batch: int = 2) -> Tensor:
    corner, size = (torch.rand(batch, 30, 2, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    rois = torch.cat([corner * 300 - 40, corner * 300 - 40 + 2 ** (size * 9)], -1)
    rois[:, 0] = torch.tensor([50.0, 60, 20, 30])  # inverted
    return rois


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", ALL_TYPES, ids=str)
@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align_fpn_trains_like_torchvision(aligned: bool, dtype: torch.dtype, layout: torch.memory_format) -> None:
    features, rois = pyramid(dtype=dtype, layout=layout), some_rois()

    def gradients(maps: list[Tensor], call: Callable[..., Tensor]) -> list[Tensor]:
        leaves = [each.detach().requires_grad_() for each in maps]
        pooled = call(leaves, rois, 7, 2, aligned)
        signs = torch.arange(pooled.numel()).remainder(4).sub(1).view(pooled.shape).to(pooled)
        return [pooled.detach(), *torch.autograd.grad((pooled * signs).sum(), leaves)]

    found = gradients(features, plugins_cuda.roi_align_fpn)
    expected = gradients([each.double() for each in features], roi_reference.roi_align_fpn)
    tolerance = 4 * torch.finfo(dtype).eps if dtype.itemsize == 2 else 1e-4
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), other, atol=tolerance * float(other.abs().max()), rtol=0)


@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align_fpns_gradient_is_the_derivative(aligned: bool) -> None:
    features = [each.double().requires_grad_() for each in pyramid(1, 1, 16, 8)]
    rois = torch.tensor([[[1.0, 2, 12, 18], [-80, -75, 70, 75], [-140, -130, 100, 110], [-290, -280, 190, 200]]])
    assert torch.autograd.gradcheck(lambda *maps: plugins_cuda.roi_align_fpn(maps, rois, 3, 2, aligned), features)


def test_boxes_that_are_not_finite_give_no_gradient() -> None:
    features = [each.requires_grad_() for each in pyramid()]
    rois = some_rois()
    rois[:, :3, 1] = torch.tensor(NOT_FINITE)
    pooled = plugins_cuda.roi_align_fpn(features, rois, 7)
    gradients = torch.autograd.grad(pooled[:, :3].sum(), features)
    assert not any(gradient.any() for gradient in gradients)


def test_gradients_do_not_depend_on_the_features() -> None:
    """Pooling is linear: pixels that are not finite have the gradients of others."""
    features = pyramid()
    both = []
    for value in (0.0, math.nan):
        features[0][..., 0, 0] = features[3][..., 1, 1] = value
        leaves = [each.clone().requires_grad_() for each in features]
        pooled = plugins_cuda.roi_align_fpn(leaves, some_rois(), 7)
        both.append(torch.autograd.grad(pooled, leaves, torch.ones_like(pooled)))
    assert all(map(torch.equal, *both))


# --- autocast --------------------------------------------------------------------------------------------------------


def calls() -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Of every operator: the function and its arguments."""
    boxes, scores = crowd(2, 60, 3)
    fusion = fusion_inputs(4, counts=[6, 3], height=12, width=14, mask_size=28)
    limits = {"iou_threshold": 0.3, "score_threshold": 0.1, "max_output": 50}
    return {
        "deform_conv": (plugins_cuda.deform_conv, DEFORM["plain"].tensors()),
        "masked": (plugins_cuda.deform_conv, DEFORM["masked"].tensors()),
        "roi_align_fpn": (plugins_cuda.roi_align_fpn, {"features": pyramid(), "rois": some_rois(), "output_size": 7}),
        "nms": (plugins_cuda.nms, {"boxes": boxes, "scores": scores, **limits}),
        "panoptic_fusion": (plugins_cuda.panoptic_fusion, {**fusion, "num_stuff": 3, "stuff_area_limit": 20.0}),
    }


def assert_autocast_changes_nothing(front: Front, name: str) -> None:
    function, arguments = calls()[name]
    arguments = moved(arguments, front.device)
    plain = front.run(function, **arguments)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast(front.device.type, dtype):
            torch.testing.assert_close(front.run(function, **arguments), plain, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["deform_conv", "masked", "roi_align_fpn"])
def test_autocast_changes_nothing(front: Front, name: str) -> None:
    assert_autocast_changes_nothing(front, name)


@pytest.mark.parametrize("front", FORWARD, indirect=True)
@pytest.mark.parametrize("name", ["nms", "panoptic_fusion"])
def test_autocast_changes_no_decision(front: Front, name: str) -> None:
    assert_autocast_changes_nothing(front, name)
