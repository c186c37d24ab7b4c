"""RoIAlign over the pyramid: the definition, its ONNX body, its input checks, and how PyTorch sees it.

The compiled fronts are held against the definition in test_roi_align_fpn_fronts.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import plugins_cuda
from plugins_cuda import library
from plugins_cuda.roi_align_fpn import MAX_SAMPLES, reference
from tests.plugins_cuda.conftest import Calling, RunNode, assert_one_operator, export, run_model
from tests.plugins_cuda.inputs import ALL_TYPES, SPECIAL_BOXES, level_by_level, pyramid

pytestmark = pytest.mark.numeric


def hostile_boxes(batch: int = 2) -> Tensor:
    """Random boxes of all levels, and padded, empty, inverted, tiny, huge and outside ones."""
    generator = torch.Generator().manual_seed(1)
    centre = torch.rand(batch, 40, 2, generator=generator) * torch.tensor([384.0, 256.0])
    size = 2 ** (torch.rand(batch, 40, 2, generator=generator) * 9)
    special = torch.tensor(SPECIAL_BOXES)
    return torch.cat([torch.cat([centre - size / 2, centre + size / 2], -1), special.expand(batch, -1, -1)], 1)


def run_body(
    run_node: RunNode, features: list[Tensor], rois: Tensor, aligned: bool = True, size: int = 7, **options: Any
) -> np.ndarray:
    inputs = {"p2": features[0], "p3": features[1], "p4": features[2], "p5": features[3], "rois": rois}
    attributes = {
        "output_size": size,
        "sampling_ratio": options.get("sampling_ratio", 2),
        "coordinate_transformation_mode": "half_pixel" if aligned else "output_half_pixel",
        "inclusive": int(options.get("inclusive", False)),
    }
    return run_node("RoiAlignFpn", inputs, [torch.float32], **attributes)[0]


def test_levels_known_answers() -> None:
    sides = torch.tensor([0.0, 1.0, 111.9, 112.0, 223.9, 224.0, 447.0, 448.0, 896.0, 5000.0])
    boxes = torch.stack([torch.zeros_like(sides), torch.zeros_like(sides), sides, sides], dim=1)
    assert reference.assign_levels(boxes).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3]
    # 223 + 1 = 224: the inclusive convention
    assert reference.assign_levels(torch.tensor([[0.0, 0, 223, 223]]), inclusive=True).tolist() == [2]
    inverted = torch.tensor([[10.0, 10, 5, 400], [400, 400, 0, 0]])
    assert reference.assign_levels(inverted).tolist() == [0, 0]


def test_levels_equal_the_formula() -> None:
    generator = torch.Generator().manual_seed(3)
    boxes = torch.rand(500, 4, generator=generator) * 40
    boxes[:, 2:] += 2 ** (torch.rand(500, 2, generator=generator) * 10)
    for box, level in zip(boxes.tolist(), reference.assign_levels(boxes).tolist(), strict=True):
        width, height = max(box[2] - box[0], 0), max(box[3] - box[1], 0)
        ratio = math.sqrt(width * height) / 224 + 1e-6
        assert level == min(max(math.floor(2 + math.log2(ratio)), 0), 3)


def test_pools_from_the_level_of_each_box() -> None:
    features = [torch.full((1, 1, 64 >> level, 64 >> level), float(level)) for level in range(4)]
    rois = torch.tensor([[[8.0, 8, 40, 40], [8, 8, 128, 128], [0, 0, 240, 240]]])
    pooled = plugins_cuda.roi_align_fpn(features, rois, 2)
    assert pooled.shape == (1, 3, 1, 2, 2)
    assert pooled[0, :, 0, 0, 0].tolist() == [0, 1, 2]


def test_bin_is_the_mean_of_its_samples() -> None:
    # f(x, y) = x on a map of stride 4: a box from 8 to 24 is 2..6 on the map, drawn half a pixel back; its two bins of
    # width 2 have their mean at 2.5 and 4.5.
    ramp = torch.arange(16.0).expand(1, 1, 16, 16).clone()
    features = [ramp, *(torch.zeros(1, 1, 8 >> level, 8 >> level) for level in range(3))]
    rois = torch.tensor([[[8.0, 8, 24, 24]]])
    assert plugins_cuda.roi_align_fpn(features, rois, 2)[0, 0, 0].tolist() == [[2.5, 4.5], [2.5, 4.5]]
    assert plugins_cuda.roi_align_fpn(features, rois, 2, aligned=False)[0, 0, 0].tolist() == [[3, 5], [3, 5]]


@pytest.mark.parametrize("dtype", ALL_TYPES, ids=str)
@pytest.mark.parametrize("broken", [None, math.inf, -math.inf, math.nan], ids=str)
@pytest.mark.parametrize("conventions", [(True, False), (False, True)], ids=["ours", "original"])
def test_levels_of_others_add_nothing(conventions: tuple[bool, bool], broken: float | None, dtype: torch.dtype) -> None:
    """Bit for bit what pooling each box on its own level alone gives; its gradients, too, where pixels are not finite
    and where a map has none."""
    rois = hostile_boxes()
    rois[0, 0, 2], rois[1, 1, 0] = math.nan, math.inf
    maps = [level.to(dtype) for level in pyramid()]
    if broken is not None:
        for level in maps:
            level[0, :, 0, 0] = level[1, :, -1, -2] = broken
        maps[3] = maps[3][:, :, :0]

    def pooled(definition: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        leaves = [level.clone().requires_grad_() for level in maps]
        result = definition(leaves, rois, 7, 2, *conventions)
        weights = torch.arange(result.numel()).remainder(5).view_as(result).to(dtype)
        gradients = torch.autograd.grad(result, leaves, weights, allow_unused=True)
        return result.detach(), *(torch.zeros(()) if each is None else each for each in gradients)

    found, expected = pooled(reference.roi_align_fpn), pooled(level_by_level)
    assert expected[0].count_nonzero() > 1000
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.nan_to_num(7.0), theirs.nan_to_num(7.0)) or not theirs.numel()


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("inclusive", [True, False])
def test_body_equals_reference(run_node: RunNode, aligned: bool, inclusive: bool) -> None:
    features, rois = pyramid(), hostile_boxes()
    expected = reference.roi_align_fpn(features, rois, 7, 2, aligned, inclusive)
    actual = run_body(run_node, features, rois, aligned, inclusive=inclusive)
    np.testing.assert_allclose(actual, expected.numpy(), atol=1e-5)
    assert not np.isnan(actual).any()


@pytest.mark.parametrize("count", [0, 1])
def test_body_without_boxes_on_most_levels(run_node: RunNode, count: int) -> None:
    features, rois = pyramid(), hostile_boxes()[:, :count]
    expected = reference.roi_align_fpn(features, rois, 14)
    np.testing.assert_allclose(run_body(run_node, features, rois, size=14), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_body_takes_half_types(dtype: torch.dtype) -> None:
    """ONNX Runtime pools in float32 whatever the maps are, and rounds once."""
    features, rois = [feature.to(dtype) for feature in pyramid()], hostile_boxes()

    def pool(*inputs: Tensor) -> Tensor:
        maps = [each.to(dtype) for each in inputs[:4]]
        return plugins_cuda.roi_align_fpn(maps, inputs[4], 7).float()

    inputs = (*(feature.float() for feature in features), rois)
    (found,) = run_model(export(Calling(pool), inputs), *inputs)
    expected = reference.roi_align_fpn(features, rois, 7).float().numpy()
    np.testing.assert_allclose(found, expected, rtol=torch.finfo(dtype).eps, atol=1e-5)


def test_boxes_that_are_not_finite_give_zeros_everywhere(run_node: RunNode) -> None:
    features = pyramid()
    rois = hostile_boxes()[:, :12].clone()
    expected = reference.roi_align_fpn(features, rois, 7)
    for index, value in enumerate((math.nan, math.inf, -math.inf)):
        for coordinate in range(4):
            rois[:, 4 * index + coordinate // 2 * 2, coordinate] = value
    broken = ~rois.isfinite().all(-1)
    expected[broken] = 0
    assert torch.equal(reference.roi_align_fpn(features, rois, 7), expected)
    np.testing.assert_allclose(run_body(run_node, features, rois), expected.numpy(), atol=1e-5)


def test_reference_pools_half_types_in_float32() -> None:
    features, rois = [feature.half() for feature in pyramid()], hostile_boxes()
    exact = reference.roi_align_fpn([feature.float() for feature in features], rois, 7)
    assert torch.equal(reference.roi_align_fpn(features, rois, 7), exact.half())


def test_gradient_reaches_every_level() -> None:
    features = [feature.double().requires_grad_() for feature in pyramid(1, 1, 16, 8)]
    rois = torch.tensor(
        [[[1.0, 2, 12, 18], [-80, -75, 70, 75], [-140, -130, 100, 110], [-290, -280, 190, 200]]]
    ).double()

    def pool(*levels: Tensor) -> Tensor:
        return reference.roi_align_fpn(levels, rois, 2)

    assert torch.autograd.gradcheck(pool, features)
    pool(*features).sum().backward()
    assert all(feature.grad is not None and feature.grad.abs().sum() > 0 for feature in features)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": pyramid()[:3]}, "features must be P2, P3, P4, P5, got 3 tensors"),
        ({"features": [*pyramid()[:3], torch.zeros(2, 3, 8)]}, r"features\[3\] must be torch.float32 \[B, C, H5, W5\]"),
        (
            {"features": [*pyramid()[:3], pyramid()[3].half()]},
            r"features\[3\] must be torch.float32 .*got torch.float16",
        ),
        (
            {"features": [*pyramid()[:3], pyramid(channels=4)[3]]},
            r"features\[3\] must be .* = \(2, 3, H5, W5\), got torch.float32 \(2, 4, 8, 12\)",
        ),
        ({"rois": hostile_boxes()[0]}, r"rois must be floating point \[B, R, 4\]"),
        ({"rois": hostile_boxes().long()}, "rois must be floating"),
        ({"rois": hostile_boxes(3)}, r"rois must be .* = \(2, R, 4\), got torch.float32 \(3,"),
        ({"sampling_ratio": -1}, "sampling_ratio must be at least 0, got -1"),
        ({"sampling_ratio": 0, "output_size": 1025}, r"at most 1024, got 1025 \* 0"),
        ({"sampling_ratio": MAX_SAMPLES // 7 + 1}, "at most 1024"),
        ({"output_size": 2**32 + 7}, "output_size must be at most 2147483647, got 4294967303"),
    ],
)
def test_wrong_inputs(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"features": pyramid(), "rois": hostile_boxes(), "output_size": 7}
    with pytest.raises(ValueError, match=message):
        plugins_cuda.roi_align_fpn(**(arguments | change))


def test_rois_of_other_types_are_taken_as_float32() -> None:
    features, rois = pyramid(), hostile_boxes().half()
    expected = plugins_cuda.roi_align_fpn(features, rois.float(), 7)
    for dtype in (torch.float16, torch.float64):
        assert torch.equal(plugins_cuda.roi_align_fpn(features, rois.to(dtype), 7), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_one_operator_of_pytorch(dtype: torch.dtype) -> None:
    features, rois = [feature.to(dtype) for feature in pyramid()], hostile_boxes()
    torch.library.opcheck(torch.ops.upsnet.roi_align_fpn.default, (features, rois, 7, 2, True, False, False))
    assert_one_operator("roi_align_fpn", lambda maps, rois: plugins_cuda.roi_align_fpn(maps, rois, 7), (features, rois))


def test_reference_serves_where_there_is_no_library() -> None:
    features, rois = pyramid(), hostile_boxes()
    with library.definitions():
        assert torch.equal(plugins_cuda.roi_align_fpn(features, rois, 7), reference.roi_align_fpn(features, rois, 7))


def test_training_and_inference_agree() -> None:
    features, rois = pyramid(), hostile_boxes()
    expected = plugins_cuda.roi_align_fpn(features, rois, 7)
    leaves = [feature.clone().requires_grad_() for feature in features]
    trained = plugins_cuda.roi_align_fpn(leaves, rois, 7)
    assert trained.requires_grad and not expected.requires_grad
    torch.testing.assert_close(trained.detach(), expected, atol=1e-4, rtol=0)


def test_levels_of_the_original(shared_data: Path) -> None:
    golden = np.load(shared_data / "upsnet_golden" / "cityscapes_r50.npz")
    levels = reference.assign_levels(torch.from_numpy(golden["roi_boxes"]), inclusive=True)
    assert levels.tolist() == (golden["roi_level"] - 2).tolist()
