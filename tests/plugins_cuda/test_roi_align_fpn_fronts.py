"""Every RoIAlign (compiled for CPU or GPU, emulated, the definition, in training) against the definition and others."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import plugins_cuda
from plugins_cuda.roi_align_fpn import reference
from tests.plugins_cuda.conftest import Front, session_of
from tests.plugins_cuda.inputs import ALL_TYPES, LAYOUTS, SPECIAL_BOXES, pyramid

pytestmark = pytest.mark.numeric


def boxes(batch: int, count: int, seed: int = 1) -> Tensor:
    """Of all levels, some of them partly or wholly outside an image of 256 x 384."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(batch, count, 2, generator=generator) * torch.tensor([500.0, 350.0]) - 50
    size = 2 ** (torch.rand(batch, count, 2, generator=generator) * 10 - 1)
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def pool(front: Front, features: list[Tensor], rois: Tensor, *arguments: Any) -> Tensor:
    """Through the front; back on the CPU."""
    features = [each.to(front.device) for each in features]
    pooled = front.run(plugins_cuda.roi_align_fpn, features, rois.to(front.device), *arguments)
    assert pooled.is_contiguous()
    assert pooled.dtype == features[0].dtype
    return pooled.cpu()


def decided(
    features: list[Tensor], rois: Tensor, size: int, ratio: int, aligned: bool, inclusive: bool = False
) -> Tensor:
    """bool [B, R]: no sample is so near to -1 or to the map's length, where the definition jumps, that it may flip."""
    level = reference.assign_levels(rois, inclusive)
    lengths = torch.tensor([[each.shape[3], each.shape[2]] for each in features])[level].double()
    corner = rois.double() / (4 * 2**level)[..., None] - (0.5 if aligned else 0.0)
    extent = corner[..., 2:] - corner[..., :2]
    if not aligned:
        extent = extent.clamp(min=1)
    share = (torch.arange(size * ratio) + 0.5) / (size * ratio)
    places = corner[..., :2, None] + extent[..., None] * share
    gap = (
        torch.minimum((places + 1).abs(), (places - lengths[..., None]).abs())
        / (1 + corner.abs().amax(-1))[..., None, None]
    )
    return (gap > 1e-5).flatten(2).all(-1)


def assert_as_exact_as_the_reference(
    pooled: Tensor, features: list[Tensor], rois: Tensor, size: int, ratio: int, *flags: Any
) -> None:
    """Error against float64 at most twice that of PyTorch in the same precision, and what a sum of 4 ratio^2 numbers
    in another order may differ by."""
    arguments = (size, ratio, *flags)
    exact = reference.roi_align_fpn([each.double() for each in features], rois, *arguments)
    same = reference.roi_align_fpn(features, rois, *arguments)
    kept = decided(features, rois, *arguments)
    assert kept.float().mean() > 0.9
    error, allowed = (pooled - exact)[kept].abs().amax(), (same - exact)[kept].abs().amax()
    assert error <= 2 * allowed + 1e-6 + 2 * ratio * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ALL_TYPES)
@pytest.mark.parametrize("channels", [3, 40])  # no multiple of any vector; one of all vectors, but not of a CPU group
@pytest.mark.parametrize(("aligned", "inclusive"), [(True, False), (False, True)])
def test_equals_reference(
    front: Front, channels: int, dtype: torch.dtype, layout: torch.memory_format, aligned: bool, inclusive: bool
) -> None:
    features, rois = pyramid(2, channels, 144, 216, dtype, layout), boxes(2, 24) * 2.25
    arguments = (7, 2, aligned, inclusive)
    assert len(set(reference.assign_levels(rois, inclusive).flatten().tolist())) == 4
    assert_as_exact_as_the_reference(pool(front, features, rois, *arguments), features, rois, *arguments)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize(
    ("size", "ratio", "channels", "count"),
    [
        (14, 2, 32, 3),  # the mask head
        (1, 1, 1, 5),
        (5, 3, 19, 3),
        (3, 7, 2, 3),  # more columns in a bin than are read at once
        (7, 2, 150, 2),  # several groups of channels, the last one in part
        (28, 1, 136, 1),  # more bins than one block holds
        (2, 512, 4, 1),  # the most samples
    ],
)
def test_sizes(
    front: Front, size: int, ratio: int, channels: int, count: int, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    features, rois = pyramid(1, channels, 32, 48, dtype, layout), boxes(1, count, seed=2) / 2
    arguments = (size, ratio, True)
    pooled = pool(front, features, rois, *arguments)
    assert_as_exact_as_the_reference(pooled, features, rois, *arguments)


@pytest.mark.parametrize("aligned", [True, False])
def test_hostile_boxes(front: Front, aligned: bool) -> None:
    features = pyramid()
    special = [*SPECIAL_BOXES, [-3e38, -3e38, 3e38, 3e38], [1e30, 0, -1e30, 10]]
    broken = [[10.0, 10, 90, 90] for _ in range(12)]
    for index, value in enumerate((math.nan, math.inf, -math.inf)):
        for coordinate in range(4):
            broken[4 * index + coordinate][coordinate] = value
    rois = torch.tensor([special + broken] * 2)
    pooled = pool(front, features, rois, 7, 2, aligned)
    expected = reference.roi_align_fpn(features, rois, 7, 2, aligned)
    torch.testing.assert_close(pooled, expected, atol=1e-4, rtol=0)
    assert not pooled[:, len(special) :].any()
    assert not pooled[:, SPECIAL_BOXES.index([1000, 1000, 1200, 1300])].any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_smallest_maps(front: Front, layout: torch.memory_format) -> None:
    features = [each.contiguous(memory_format=layout) for each in pyramid(1, 8, 1, 1)]
    rois = torch.tensor([[[0.0, 0, 4, 4], [-3, -3, 3, 3], [1, 1, 400, 300], [40, 40, 50, 50], [0, 0, 30, 8]]])
    torch.testing.assert_close(pool(front, features, rois, 7), reference.roi_align_fpn(features, rois, 7))


def test_nothing_to_do(front: Front) -> None:
    features = pyramid()
    assert pool(front, features, torch.zeros(2, 0, 4), 7).shape == (2, 0, 3, 7, 7)
    assert pool(front, [each[:0] for each in features], torch.zeros(0, 5, 4), 7).shape == (0, 5, 3, 7, 7)
    assert pool(front, [each[:, :0] for each in features], torch.zeros(2, 5, 4), 7).shape == (2, 5, 0, 7, 7)
    assert pool(front, [each[:, :, :0] for each in features], torch.zeros(2, 5, 4), 7).count_nonzero() == 0
    assert pool(front, [each[:0, :0] for each in features], torch.zeros(0, 0, 4), 7).shape == (0, 0, 0, 7, 7)


@pytest.mark.parametrize("dtype", ALL_TYPES)
@pytest.mark.parametrize("empty", [[0], [3], [1, 2], [0, 1, 2, 3]])
def test_levels_without_pixels(front: Front, empty: list[int], dtype: torch.dtype) -> None:
    features, rois = pyramid(dtype=dtype), boxes(2, 40)
    level = reference.assign_levels(rois)
    expected = pool(front, features, rois, 7)
    for index in empty:
        assert (level == index).any()
        features[index] = features[index][:, :, :0] if index % 2 else features[index][..., :0]
        expected[level == index] = 0
    assert torch.equal(pool(front, features, rois, 7), expected)


@pytest.mark.parametrize("dtype", ALL_TYPES)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_pixels_that_are_not_finite_reach_the_boxes_on_them_alone(
    front: Front, value: float, dtype: torch.dtype
) -> None:
    features = pyramid(dtype=dtype)
    rois = torch.tensor(
        [
            [8.0, 8, 12, 12],  # on P2 without the half pixel, samples at 2.25 and 2.75: beside pixel (0, 0)
            [0, 0, 8, 8],  # at .5 and 1.5: on it
            [-8, -8, 8, 8],  # at -1 and 1: the first one is drawn to it
            [-40, -40, -20, -20],  # outside
            [1000, 1000, 1040, 1040],
            [0, 0, 16, 16],  # at 1 and 3: pixel (4, 4) has no weight
        ]
    ).expand(2, -1, -1)
    expected = pool(front, features, rois, 1, 2, False)
    features[0][0, :, 0, 0] = features[0][0, :, 4, 4] = value
    pooled = pool(front, features, rois, 1, 2, False)
    reached = torch.zeros(2, 6, dtype=torch.bool)
    reached[0, [1, 2]] = True
    assert torch.equal(pooled[~reached], expected[~reached])
    torch.testing.assert_close(pooled[reached], torch.full_like(pooled[reached], value), equal_nan=True)


def test_levels_at_their_borders(front: Front) -> None:
    # Map l holds the value l + 1.
    features = [torch.full((1, 1, 32, 32), level + 1.0) for level in range(4)]
    sides = [111.0, 112.0, 113.0, 223.0, 224.0, 225.0, 447.0, 448.0, 449.0]
    rois = torch.tensor([[[0.0, 0.0, side, side] for side in sides]])
    for inclusive in (False, True):
        found = pool(front, features, rois, 1, 2, True, inclusive)[0, :, 0, 0, 0]
        assert (found - 1).tolist() == reference.assign_levels(rois, inclusive)[0].tolist()


def test_maps_that_are_no_plain_tensors(front: Front) -> None:
    """Strided, not aligned to 16 bytes, or each in another layout."""
    features, rois = pyramid(2, 8), boxes(2, 6)
    expected = pool(front, features, rois, 7)
    strided = [torch.stack([each, each], dim=-1)[..., 1] for each in features]
    assert torch.equal(pool(front, strided, rois, 7), expected)
    mixed = [each.contiguous(memory_format=LAYOUTS[level % 2]) for level, each in enumerate(features)]
    assert torch.equal(pool(front, mixed, rois, 7), expected)
    for layout in LAYOUTS:
        shifted = []
        for each in features:
            target = torch.empty(each.numel() + 1, device=front.device)[1:].as_strided(
                each.shape, each.contiguous(memory_format=layout).stride()
            )
            shifted.append(target.copy_(each))
        torch.testing.assert_close(pool(front, shifted, rois, 7), expected, atol=1e-6, rtol=1e-6)


def boxes_that_fusing_would_flip(border: int, size: int, ratio: int) -> list[list[float]]:
    """[low, high] of boxes on P2 of which a sample lies on the inner side of `border` when every operation is rounded,
    and on the outer side when a product is fused with a sum, or the other way round."""
    one = np.float32
    found = []
    for low in np.linspace(3, 30, 60, dtype=one) * (-1 if border > 0 else 1):
        start = low * one(0.25) - one(0.5)
        for index, sample in np.ndindex(size, ratio):
            high = one(4 * ((border - start) * size / (index + (sample + 0.5) / ratio) + start + 0.5))
            for _ in range(40):
                high = np.nextafter(high, one(-1e9))
            for _ in range(80):
                high = np.nextafter(high, one(1e9))
                bin_size = (high * one(0.25) - one(0.5) - start) / one(size)
                offset = (one(sample) + one(0.5)) * bin_size / one(ratio)
                rounded = start + one(index) * bin_size + offset
                fused = one(float(one(index)) * float(bin_size) + float(start)) + offset
                if abs(high) < 100 and (rounded > border) != (fused > border):
                    found.append([float(low), float(high)])
    return found


def test_samples_at_the_border_are_in_or_out_as_torchvision_rounds_them(front: Front) -> None:
    """The value jumps from that of the border's pixel to zero there."""
    length, size, ratio = 12, 7, 2
    ends = boxes_that_fusing_would_flip(length, size, ratio) + boxes_that_fusing_would_flip(-1, size, ratio)
    assert min(low for low, _high in ends) < 0 < max(low for low, _high in ends)
    rois = torch.tensor([[[low, low, high, high] for low, high in ends]])
    features = [torch.ones(1, 8, length, length) for _ in range(4)]
    assert not reference.assign_levels(rois).any()
    expected = reference.roi_align_fpn(features, rois, size, ratio)
    torch.testing.assert_close(pool(front, features, rois, size, ratio), expected)


coordinate = st.one_of(st.integers(-100, 500).map(float), st.floats(-500, 900, width=32))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    corners=st.lists(st.tuples(coordinate, coordinate, coordinate, coordinate), min_size=1, max_size=6),
    size=st.integers(1, 8),
    ratio=st.integers(1, 3),
    channels=st.integers(1, 9),
    flags=st.tuples(st.booleans(), st.booleans(), st.sampled_from(ALL_TYPES), st.sampled_from(LAYOUTS)),
)
def test_drawn_boxes(
    front: Front, corners: list[tuple[float, ...]], size: int, ratio: int, channels: int, flags: Any
) -> None:
    aligned, inclusive, dtype, layout = flags
    features, rois = pyramid(1, channels, 32, 40, dtype, layout), torch.tensor([corners])
    arguments = (size, ratio, aligned, inclusive)
    pooled = pool(front, features, rois, *arguments)
    assert pooled.isfinite().all()
    expected = reference.roi_align_fpn(features, rois, *arguments)
    kept = decided(features, rois, *arguments)
    # A sample on a map's pixel border may move by the rounding of its coordinate, times the map's steepness.
    torch.testing.assert_close(pooled[kept], expected[kept], atol=4 * torch.finfo(dtype).eps + 2e-4, rtol=0)


def test_many_boxes(front: Front) -> None:
    count = 60 if front.name == "emulated" else 2000
    features, rois = pyramid(1, 64, 128, 192), boxes(1, count)
    assert_as_exact_as_the_reference(pool(front, features, rois, 7), features, rois, 7, 2, True)


def test_batch_and_order_do_not_matter(front: Front) -> None:
    features, rois = pyramid(), boxes(2, 20)
    together = pool(front, features, rois, 7)
    assert torch.equal(pool(front, [each[1:] for each in features], rois[1:], 7), together[1:])
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    assert torch.equal(pool(front, features, rois[:, order], 7), together[:, order])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("size", "channels"), [(7, 40), (28, 5)])
def test_emulated_threads_in_any_order(
    monkeypatch: pytest.MonkeyPatch, other_order: None, size: int, channels: int, layout: torch.memory_format
) -> None:
    features, rois = pyramid(1, channels, layout=layout), boxes(1, 4)
    found = plugins_cuda.roi_align_fpn(features, rois, size)
    monkeypatch.delenv("UPSNET_EMULATOR_ORDER")
    assert torch.equal(found, plugins_cuda.roi_align_fpn(features, rois, size))


def test_cpu_threads_do_not_matter() -> None:
    for layout in LAYOUTS:
        features, rois = pyramid(2, 40, layout=layout), boxes(2, 50)
        alone = plugins_cuda.roi_align_fpn(features, rois, 7)
        torch.set_num_threads(3)
        assert torch.equal(plugins_cuda.roi_align_fpn(features, rois, 7), alone)
        torch.set_num_threads(1)


def away_from_level_borders(rois: Tensor) -> Tensor:
    """[1, R, 4] -> [1, r, 4]: other implementations round the level rule otherwise."""
    size = (rois[..., 2:] - rois[..., :2]).clamp(min=1e-3)
    level = torch.log2(size.prod(-1).sqrt() / 224)
    return rois[(level - level.round()).abs() > 1e-3][None]


def test_equals_torchvision_multi_scale(front: Front) -> None:
    features, rois = pyramid(1, 16), away_from_level_borders(boxes(1, 60))
    rois = rois[decided(features, rois, 7, 2, False)][None]
    pooler = torchvision.ops.MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=7, sampling_ratio=2)
    maps = {str(level): each for level, each in enumerate(features)}
    expected = pooler(maps, [rois[0]], [(256, 384)])[None]
    torch.testing.assert_close(pool(front, features, rois, 7, 2, False), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("aligned", [True, False])
def test_equals_onnxruntime_roi_align(front: Front, aligned: bool) -> None:
    features, rois = pyramid(1, 8), away_from_level_borders(boxes(1, 60))
    rois = rois[decided(features, rois, 7, 2, aligned)][None]
    pooled = pool(front, features, rois, 7, 2, aligned)[0].numpy()
    level = reference.assign_levels(rois)[0]
    value = onnx.helper.make_tensor_value_info
    inputs = [
        value("map", onnx.TensorProto.FLOAT, [None] * 4),
        value("rois", onnx.TensorProto.FLOAT, [None, 4]),
        value("image", onnx.TensorProto.INT64, [None]),
    ]
    for index in range(4):
        node = onnx.helper.make_node(
            "RoiAlign", ["map", "rois", "image"], ["out"], output_height=7, output_width=7, sampling_ratio=2,
            spatial_scale=0.25 / 2**index,
            coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
        )  # fmt: skip
        graph = onnx.helper.make_graph([node], "one", inputs, [value("out", onnx.TensorProto.FLOAT, None)])
        own = rois[0, level == index].numpy()
        assert len(own) > 0
        feeds = {"map": features[index].numpy(), "rois": own, "image": np.zeros(len(own), np.int64)}
        np.testing.assert_allclose(pooled[level == index], session_of(graph).run(None, feeds)[0], atol=1e-4)
