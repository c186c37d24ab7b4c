"""RoIAlign over the pyramid: the level rule, the pooling, and the ONNX body against the reference."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import plugins_cuda
from plugins_cuda.roi_align_fpn import reference


def pyramid(batch: int = 2, channels: int = 3, height: int = 64, width: int = 96, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, channels, height >> level, width >> level, generator=generator) for level in range(4)]


def hostile_boxes(batch: int = 2) -> Tensor:
    """Random boxes of all levels, and padded, empty, inverted, tiny, huge and outside ones."""
    generator = torch.Generator().manual_seed(1)
    centre = torch.rand(batch, 40, 2, generator=generator) * torch.tensor([384.0, 256.0])
    size = 2 ** (torch.rand(batch, 40, 2, generator=generator) * 9)
    special = torch.tensor(
        [
            [0, 0, 0, 0],
            [20, 30, 20, 30],
            [50, 50, 49.5, 60],
            [300, 200, 10, 20],
            [1, 1, 1.25, 1.5],
            [-900, -900, 2000, 2000],
            [-80, -60, -10, -5],
            [380, 250, 500, 400],
            [1000, 1000, 1200, 1300],
            [-2, -2, 5, 5],
        ]
    )
    return torch.cat([torch.cat([centre - size / 2, centre + size / 2], -1), special.expand(batch, -1, -1)], 1)


def run_body(
    run_node, features: list[Tensor], rois: Tensor, aligned: bool = True, size: int = 7, **options
) -> np.ndarray:
    inputs = {"p2": features[0], "p3": features[1], "p4": features[2], "p5": features[3], "rois": rois}
    attributes = {
        "output_size": size,
        "sampling_ratio": options.get("sampling_ratio", 2),
        "coordinate_transformation_mode": "half_pixel" if aligned else "output_half_pixel",
        "canonical_size": options.get("canonical_size", 224.0),
        "inclusive": int(options.get("inclusive", False)),
    }
    return run_node("RoiAlignFpn", inputs, [torch.float32], **attributes)[0]


def test_levels_known_answers():
    sides = torch.tensor([0.0, 1.0, 111.9, 112.0, 223.9, 224.0, 447.0, 448.0, 896.0, 5000.0])
    boxes = torch.stack([torch.zeros_like(sides), torch.zeros_like(sides), sides, sides], dim=1)
    assert reference.assign_levels(boxes).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3]
    assert reference.assign_levels(boxes, canonical_size=56.0).tolist() == [0, 0, 2, 3, 3, 3, 3, 3, 3, 3]
    # 223 + 1 = 224: the inclusive convention
    assert reference.assign_levels(torch.tensor([[0.0, 0, 223, 223]]), inclusive=True).tolist() == [2]
    inverted = torch.tensor([[10.0, 10, 5, 400], [400, 400, 0, 0]])
    assert reference.assign_levels(inverted).tolist() == [0, 0]


def test_levels_equal_the_formula():
    generator = torch.Generator().manual_seed(3)
    boxes = torch.rand(500, 4, generator=generator) * 40
    boxes[:, 2:] += 2 ** (torch.rand(500, 2, generator=generator) * 10)
    for box, level in zip(boxes.tolist(), reference.assign_levels(boxes).tolist(), strict=True):
        width, height = max(box[2] - box[0], 0), max(box[3] - box[1], 0)
        ratio = math.sqrt(width * height) / 224 + 1e-6
        assert level == min(max(math.floor(2 + math.log2(ratio)), 0), 3)


def test_pools_from_the_level_of_each_box():
    features = [torch.full((1, 1, 64 >> level, 64 >> level), float(level)) for level in range(4)]
    rois = torch.tensor([[[8.0, 8, 40, 40], [8, 8, 128, 128], [0, 0, 240, 240]]])
    pooled = plugins_cuda.roi_align_fpn(features, rois, 2)
    assert pooled.shape == (1, 3, 1, 2, 2)
    assert pooled[0, :, 0, 0, 0].tolist() == [0, 1, 2]


def test_bin_is_the_mean_of_its_samples():
    # f(x, y) = x on a map of stride 4: a box from 8 to 24 is 2..6 on the map, drawn half a pixel back; its two bins of
    # width 2 have their mean at 2.5 and 4.5.
    ramp = torch.arange(16.0).expand(1, 1, 16, 16).clone()
    features = [ramp, *(torch.zeros(1, 1, 8 >> level, 8 >> level) for level in range(3))]
    rois = torch.tensor([[[8.0, 8, 24, 24]]])
    assert plugins_cuda.roi_align_fpn(features, rois, 2)[0, 0, 0].tolist() == [[2.5, 4.5], [2.5, 4.5]]
    assert plugins_cuda.roi_align_fpn(features, rois, 2, aligned=False)[0, 0, 0].tolist() == [[3, 5], [3, 5]]


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("inclusive", [True, False])
def test_body_equals_reference(run_node, aligned: bool, inclusive: bool):
    features, rois = pyramid(), hostile_boxes()
    expected = reference.roi_align_fpn(features, rois, 7, 2, aligned, 100.0, inclusive)
    actual = run_body(run_node, features, rois, aligned, canonical_size=100.0, inclusive=inclusive)
    np.testing.assert_allclose(actual, expected.numpy(), atol=1e-5)
    assert not np.isnan(actual).any()


@pytest.mark.parametrize("count", [0, 1])
def test_body_without_boxes_on_most_levels(run_node, count: int):
    features, rois = pyramid(), hostile_boxes()[:, :count]
    expected = reference.roi_align_fpn(features, rois, 14)
    np.testing.assert_allclose(run_body(run_node, features, rois, size=14), expected.numpy(), atol=1e-5)


def test_batch_and_order_do_not_matter():
    features, rois = pyramid(), hostile_boxes()
    together = plugins_cuda.roi_align_fpn(features, rois, 7)
    alone = plugins_cuda.roi_align_fpn([feature[1:] for feature in features], rois[1:], 7)
    assert torch.equal(together[1:], alone)
    order = torch.randperm(rois.shape[1], generator=torch.Generator().manual_seed(2))
    assert torch.equal(plugins_cuda.roi_align_fpn(features, rois[:, order], 7), together[:, order])


def test_gradient_reaches_every_level():
    features = [feature.double().requires_grad_() for feature in pyramid(1, 1, 16, 8)]
    rois = torch.tensor([[[1.0, 2, 12, 18], [3, 3, 30, 29], [1, 9, 40, 55], [0, 0, 100, 110]]]).double()

    def pool(*levels: Tensor) -> Tensor:
        return reference.roi_align_fpn(levels, rois, 2, canonical_size=40.0)

    assert torch.autograd.gradcheck(pool, features)
    pool(*features).sum().backward()
    assert all(feature.grad.abs().sum() > 0 for feature in features)


def test_wrong_number_of_levels():
    with pytest.raises(ValueError, match="four levels"):
        plugins_cuda.roi_align_fpn(pyramid()[:3], hostile_boxes(), 7)


def test_levels_of_the_original(shared_data: Path):
    golden = np.load(shared_data / "upsnet_golden" / "cityscapes_r50.npz")
    levels = reference.assign_levels(torch.from_numpy(golden["roi_boxes"]), inclusive=True)
    assert levels.tolist() == (golden["roi_level"] - 2).tolist()
