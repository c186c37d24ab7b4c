"""RoIAlign with detectron2's rules: as many samples as a bin is long (sampling_ratio=0), and its rounding of levels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align

import plugins_cuda
from plugins_cuda.roi_align_fpn import reference
from tests.plugins_cuda.conftest import Front, RunNode
from tests.plugins_cuda.inputs import LAYOUTS, SPECIAL_BOXES, pyramid

pytestmark = pytest.mark.numeric

HOSTILE = [
    *SPECIAL_BOXES,
    [-3e38, -3e38, 3e38, 3e38],
    [1e30, 0, -1e30, 10],
    [-1e6, 3, 1e6, 4],
    [-100, -5e5, 5e5, 700],
    [0, 50, 30000, 50.25],
    [20, 20, 10, 90],
    [20, 20, 90, 20],
    [math.nan, 0, 30, 40],
    [0, 0, math.inf, 30],
]


def elongated(count: int, seed: int = 1) -> Tensor:
    """Boxes [1, count, 4] about an image of 256 x 384, some of them partly or wholly outside: of all levels, and with
    sides of up to 64 : 1."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(1, count, 2, generator=generator) * torch.tensor([480.0, 350.0]) - 50
    side = 2 ** (torch.rand(1, count, 1, generator=generator) * 8 + 1)
    stretch = 2 ** (torch.rand(1, count, 1, generator=generator) * 6 - 3)
    size = torch.cat([side * stretch, side / stretch], dim=-1)
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def detectron2_levels(boxes: Tensor) -> np.ndarray:
    """0..3 of boxes [N, 4]: its formula with every step rounded to float32, the logarithm correctly."""
    one = np.float32
    x1, y1, x2, y2 = boxes.numpy().T
    ratio = np.sqrt((x2 - x1) * (y2 - y1)) / one(224) + one(1e-8)
    level = np.floor(one(4) + np.log2(ratio.astype(np.float64)).astype(one))
    assert level.dtype == one
    return np.clip(level, 2, 5).astype(int) - 2


def torchvisions(features: list[Tensor], rois: Tensor, size: int, aligned: bool = True) -> Tensor:
    """[R, C, size, size] of rois [1, R, 4], in float64, box by box."""
    levels = detectron2_levels(rois[0])
    pooled = [
        roi_align(features[level].double(), [box[None].double()], size, 0.25 / 2**level, 0, aligned)
        for box, level in zip(rois[0], levels, strict=True)
    ]
    return torch.cat(pooled)


def settled(features: list[Tensor], rois: Tensor, size: int) -> Tensor:
    """bool [R]: rounding to float32 changes neither a box's number of samples nor, of any of them, whether it lies on
    the map, nor the level."""
    level = torch.from_numpy(detectron2_levels(rois[0]))
    lengths = torch.tensor([[each.shape[3], each.shape[2]] for each in features])[level].double()
    corner = rois[0].double() / (4 * 2**level)[:, None] - 0.5
    bins = (corner[:, 2:] - corner[:, :2]) / size
    kept = ((bins - bins.round()).abs() > 1e-4).all(1)
    for box, (start, bin_size, length) in enumerate(zip(corner[:, :2], bins, lengths, strict=True)):
        for axis in (0, 1):
            count = int(bin_size[axis].ceil())
            places = start[axis] + bin_size[axis] / count * (torch.arange(size * count) + 0.5)
            kept[box] &= bool(((places + 1).abs() > 1e-4).all() and ((places - length[axis]).abs() > 1e-4).all())
    ratio = (rois[0, :, 2:] - rois[0, :, :2]).prod(1).sqrt().log2() - math.log2(224)
    return kept & ((ratio - ratio.round()).abs() > 1e-4)


def pool(front: Front, features: list[Tensor], rois: Tensor, size: int, aligned: bool = True) -> Tensor:
    """[R, C, size, size], back on the CPU."""
    features = [each.to(front.device) for each in features]
    return front.run(
        plugins_cuda.roi_align_fpn, features, rois.to(front.device), size, 0, aligned, rounded_levels=True
    )[0].cpu()


@pytest.mark.parametrize(("size", "dtype"), [(7, torch.float32), (7, torch.float16), (14, torch.float32)], ids=str)
def test_equals_torchvision(front: Front, size: int, dtype: torch.dtype) -> None:
    features, rois = pyramid(1, 12, dtype=dtype, layout=LAYOUTS[size == 14]), elongated(60)
    kept = settled(features, rois, size)
    assert kept.float().mean() > 0.8 and len(set(detectron2_levels(rois[0]))) == 4
    counts = ((rois[0, :, 2:] - rois[0, :, :2]) / 4 / size).ceil()
    assert counts.min() == 1 and counts.max() > 10
    rois = rois[:, kept]
    tolerance = 1e-4 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    expected = torchvisions(features, rois, size)
    torch.testing.assert_close(pool(front, features, rois, size).double(), expected, atol=tolerance, rtol=0)


def test_sides_of_boxes_that_are_whole_numbers_of_pixels_a_bin(front: Front) -> None:
    """The count of samples jumps there: so do the values, as the maps are rough."""
    features, size = pyramid(1, 4), 7
    sides = [28.0 * count + step for count in (1, 2, 3) for step in (-1 / 64, 0.0, 1 / 64)]  # 4 pixels a cell of P2
    rois = torch.tensor([[[16.0, 24, 16 + side, 24 + side] for side in sides]])
    found = pool(front, features, rois, size)
    torch.testing.assert_close(found.double(), torchvisions(features, rois, size), atol=1e-5, rtol=0)
    steps = (found[1:] - found[:-1]).abs().amax((1, 2, 3))
    assert (steps[1::3] > 20 * steps[0::3]).all()


@pytest.mark.parametrize("vertical", [False, True])
def test_a_bin_of_48_samples_is_the_mean_of_48_pixels(front: Front, vertical: bool) -> None:
    # From 0 to 1344 on P2: 336 cells, samples half a cell back on the middles of pixels.
    features = [torch.zeros(1, 2, 3 >> level, 336 >> level) for level in range(4)]
    line = torch.rand(2, 336, generator=torch.Generator().manual_seed(0))
    features[0][0] = line[:, None]
    box = [0.0, 2.0, 1344.0, 10.0]
    if vertical:
        features, box = [each.mT.contiguous() for each in features], [2.0, 0.0, 10.0, 1344.0]
    found = pool(front, features, torch.tensor([[box]]), 7)[0]
    expected = line.unflatten(1, (7, 48)).mean(2)[:, None].expand(-1, 7, -1)
    torch.testing.assert_close(found, expected.mT if vertical else expected)


def test_maps_of_a_network_larger_than_ours(front: Front) -> None:
    """100 samples a bin, of which a tenth lie outside."""
    features = [
        torch.randn(1, 2, 4, 700 >> level, generator=torch.Generator().manual_seed(level)) for level in range(4)
    ]
    rois = torch.tensor([[[-200.0, 3, 2601, 9], [-3, -4, 2803, 0.5]]])
    found = pool(front, features, rois, 7)
    torch.testing.assert_close(found.double(), torchvisions(features, rois, 7), atol=1e-5, rtol=0)


@pytest.mark.parametrize("aligned", [True, False])
def test_hostile_boxes(front: Front, aligned: bool) -> None:
    features, rois = pyramid(1, 3), torch.tensor([HOSTILE])
    found = pool(front, features, rois, 7, aligned)
    expected = reference.roi_align_fpn(features, rois, 7, 0, aligned, rounded_levels=True)[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert not found[-2:].any() and not found[HOSTILE.index([1000, 1000, 1200, 1300])].any()
    if aligned:
        empty = ~((rois[0, :, 2:] > rois[0, :, :2]).all(1))
        assert empty.sum() == 8 and not found[empty].any()


def test_a_longer_box_ends_after_32768_pixels(front: Front) -> None:
    features = pyramid(1, 2)
    long, cut = (torch.tensor([[[3.0, 50, 3 + side, 50.2], [50, 3, 50.2, 3 + side]]]) for side in (4e4, 32768.0))
    assert not detectron2_levels(long[0]).any()
    found = pool(front, features, long, 2)
    assert found.abs().amax() > 1e-4 and torch.equal(found, pool(front, features, cut, 2))


def test_mirrored_maps_and_boxes_give_mirrored_bins(front: Front) -> None:
    features, rois = pyramid(1, 5), (elongated(40, seed=3) * 8).round() / 8
    mirrored = torch.stack([384 - rois[..., 2], rois[..., 1], 384 - rois[..., 0], rois[..., 3]], dim=-1)
    kept = settled(features, rois, 7)
    flipped = pool(front, [each.flip(3) for each in features], mirrored[:, kept], 7).flip(3)
    torch.testing.assert_close(flipped, pool(front, features, rois[:, kept], 7), atol=1e-4, rtol=0)


def test_order_of_boxes_and_images_does_not_matter(front: Front) -> None:
    features, rois = pyramid(2, 3), elongated(24).reshape(2, 12, 4)

    def pooled(maps: list[Tensor], boxes: Tensor) -> Tensor:
        maps = [each.to(front.device) for each in maps]
        return front.run(plugins_cuda.roi_align_fpn, maps, boxes.to(front.device), 7, 0).cpu()

    together = pooled(features, rois)
    assert torch.equal(pooled([each[1:] for each in features], rois[1:]), together[1:])
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    assert torch.equal(pooled(features, rois[:, order]), together[:, order])


def test_emulated_threads_in_any_order(monkeypatch: pytest.MonkeyPatch, other_order: None) -> None:
    features, rois = pyramid(1, 20), elongated(6)
    found = plugins_cuda.roi_align_fpn(features, rois, 7, 0)
    monkeypatch.delenv("UPSNET_EMULATOR_ORDER")
    assert torch.equal(found, plugins_cuda.roi_align_fpn(features, rois, 7, 0))


@pytest.mark.parametrize("aligned", [True, False])
def test_body_equals_reference(run_node: RunNode, aligned: bool) -> None:
    features = pyramid(1, 3)
    rois = torch.cat([elongated(60), torch.tensor([HOSTILE])], dim=1)
    inputs = dict(zip(("p2", "p3", "p4", "p5", "rois"), (*features, rois), strict=True))
    attributes: dict[str, Any] = {"sampling_ratio": 0, "inclusive": 0, "rounded_levels": 1}
    mode = "half_pixel" if aligned else "output_half_pixel"
    for size in (7, 14):
        (found,) = run_node(
            "RoiAlignFpn", inputs, [torch.float32],
            **attributes, output_size=size, coordinate_transformation_mode=mode,
        )  # fmt: skip
        expected = reference.roi_align_fpn(features, rois, size, 0, aligned, rounded_levels=True)
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("aligned", [True, False])
def test_gradients_equal_torchvisions(aligned: bool) -> None:
    features = [each.double() for each in pyramid(1, 3)]
    rois = torch.cat([elongated(60), torch.tensor([HOSTILE])], dim=1)
    results = []
    for pooling in (plugins_cuda, reference):
        leaves = [each.clone().requires_grad_() for each in features]
        pooled = pooling.roi_align_fpn(leaves, rois, 7, 0, aligned, False)
        signs = torch.arange(pooled.numel()).remainder(4).sub(1).view(pooled.shape)
        results.append([pooled.detach(), *torch.autograd.grad((pooled * signs).sum(), leaves)])
    for found, expected in zip(*results, strict=True):
        assert expected.any()
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


def test_gradient_is_the_derivative() -> None:
    features = [each.double().requires_grad_() for each in pyramid(1, 1, 16, 8)]
    rois = torch.tensor(
        [[[1.0, 2, 12, 18], [3, -5, 9, 61], [-140, -130, 100, 110], [-290, -280, 190, 200], [9, 9, 9, 9]]]
    )
    assert torch.autograd.gradcheck(lambda *maps: plugins_cuda.roi_align_fpn(maps, rois, 3, 0), features)


def squares_at_the_limits() -> Tensor:
    """Boxes [N, 4] of the 30 float32 areas before and after 112^2, 224^2 and 448^2, and wider steps around them."""
    heights, widths = [], []
    for side in (112.0, 224.0, 448.0):
        for step in (*range(-30, 31), *range(-3000, 3001, 50)):
            heights.append(side)
            widths.append(float(np.float32(side) + step * np.spacing(np.float32(side)) / 2))
    sides = torch.tensor([widths, heights]).T
    return torch.cat([torch.zeros_like(sides), sides], dim=1)


def test_rounded_levels_are_detectron2s() -> None:
    for limit in (112.0, 224.0, 448.0):  # every float32 within 1e-5 of it, as a side and as an area
        bits = np.float32(limit).view(np.int32) + np.arange(-300, 300, dtype=np.int32)
        side = torch.from_numpy(bits.view(np.float32))
        boxes = torch.stack([torch.zeros_like(side), torch.zeros_like(side), side, torch.full_like(side, limit)], dim=1)
        found = reference.assign_levels(boxes, rounded=True).numpy()
        assert (found == detectron2_levels(boxes)).all() and len(set(found)) == 2
        assert (found != reference.assign_levels(boxes).numpy()).any()  # 1e-6 is another rule


def test_rounded_levels_in_every_front(front: Front) -> None:
    boxes = squares_at_the_limits()
    features = [torch.full((1, 1, 112 >> level, 112 >> level), 1.0 + level) for level in range(4)]
    expected = detectron2_levels(boxes).tolist()
    assert len(set(expected)) == 4
    found = pool(front, features, boxes[None], 1).flatten()
    assert (found.round() - 1).int().tolist() == expected


def test_levels_of_the_golden_boxes(shared_data: Path) -> None:
    golden = np.load(shared_data / "panoptic_fpn_golden" / "r50.npz")
    boxes = torch.from_numpy(golden["roi_boxes"])
    assert reference.assign_levels(boxes, rounded=True).tolist() == (golden["roi_level"] - 2).tolist()
