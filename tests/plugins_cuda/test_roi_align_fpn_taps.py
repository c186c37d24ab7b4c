"""RoIAlign's taps: every number of them a bin can have, pixels that are not finite at and around each, and what the GPU
transposes of NCHW maps."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import plugins_cuda
from plugins_cuda import library
from tests.plugins_cuda.conftest import COMPILED, Front, front_fixture, prepared
from tests.plugins_cuda.inputs import LAYOUTS, SPECIAL_BOXES, TYPES, pyramid
from tests.plugins_cuda.test_roi_align_fpn_fronts import assert_as_exact_as_the_reference, pool

pytestmark = pytest.mark.numeric
front = front_fixture(COMPILED)
SAMPLES = 9  # of a bin
COUNTS = range(1, SAMPLES + 1)


def taps_of(low: float, high: float) -> set[int]:
    """The pixels with a weight of the one bin from low to high, on P2 without the half pixel."""
    places = [max(low / 4 + (index + 0.5) * (high - low) / 4 / SAMPLES, 0.0) for index in range(SAMPLES)]
    return {int(place) for place in places} | {math.ceil(place) for place in places}


def side_of(count: int) -> tuple[float, float]:
    """[low, high] of a box with so many taps."""
    step = (count - 1.6) / (SAMPLES - 1)  # from 0.3 behind the first pixel to 0.3 before the last
    low, high = 13.2 - 2 * step, 13.2 - 2 * step + 4 * step * SAMPLES
    if count == 1:
        low, high = -4.0, 0.0  # all samples are drawn to the border
    if count == 2:
        low, high = 12.0, 16.0  # the shortest box without the half pixel
    if count == SAMPLES:
        low, high = 10.0, 10.0 + 4 * SAMPLES  # on pixels: none has a neighbour
    assert len(taps_of(low, high)) == count
    return low, high


def boxes_of(pairs: list[tuple[int, int]]) -> Tensor:
    """A box [1, R, 4] for each (rows, columns)."""
    sides = [(side_of(rows), side_of(columns)) for rows, columns in pairs]
    return torch.tensor([[[x[0], y[0], x[1], y[1]] for y, x in sides]])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("channels", [8, 3])
def test_every_number_of_taps(front: Front, channels: int, dtype: torch.dtype, layout: torch.memory_format) -> None:
    # Two boxes share a warp where there are few channels: their numbers differ.
    pairs = list(itertools.product(COUNTS, COUNTS))
    features, rois = pyramid(1, channels, 24, 24, dtype, layout), boxes_of(pairs)
    arguments = (1, SAMPLES, True)  # the half pixel moves a box by two of the network's
    rois = rois + 2
    pooled = pool(front, features, rois, *arguments)
    assert_as_exact_as_the_reference(pooled, features, rois, *arguments)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_pixel_that_is_not_finite_reaches_the_bins_that_sample_it(
    front: Front, value: float, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    """An image for each pixel of a map, which is broken there."""
    side, pairs = 14, [(1, 1), (1, 2), (2, 3), (3, 1), (3, 5), (4, 4), (5, 3), (7, 6), (9, 9)]
    rois = boxes_of(pairs)
    clean = [each.expand(side * side, -1, -1, -1) for each in pyramid(1, 8, side, side, dtype)]
    broken = clean[0].clone()
    pixel = torch.arange(side * side)
    broken[pixel, :, pixel // side, pixel % side] = value
    maps = [each.contiguous(memory_format=layout) for each in [broken, *clean[1:]]]
    found = pool(front, maps, rois.expand(side * side, -1, -1), 1, SAMPLES, False)[:, :, :, 0, 0]
    expected = pool(front, [each[:1] for each in clean], rois, 1, SAMPLES, False)[:, :, :, 0, 0].expand_as(found)
    reached = torch.zeros(side * side, len(pairs), dtype=torch.bool)
    for index, (rows, columns) in enumerate(pairs):
        for row, column in itertools.product(taps_of(*side_of(rows)), taps_of(*side_of(columns))):
            reached[row * side + column, index] = True
    expected = torch.where(reached[..., None], torch.tensor(value, dtype=dtype), expected)
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("size", [2, 7, 14])
@pytest.mark.parametrize("channels", [1, 7, 12, 20, 33, 130, 257])
def test_layouts_and_addresses_do_not_matter(front: Front, channels: int, size: int, dtype: torch.dtype) -> None:
    """Odd widths; channels that are no whole vectors, or several groups of them; maps that begin on any element."""
    generator = torch.Generator().manual_seed(channels)
    maps = [torch.randn(1, channels, 9, side, generator=generator).to(dtype) for side in (13, 8, 5, 3)]
    rois = torch.tensor([[[0.0, 0, 30, 20], [4, 3, 50, 33], [-30, -20, 200, 150], [0, 0, 500, 600]]])
    wide = [each.float() for each in maps]
    expected = pool(front, wide, rois, size).to(dtype)
    for layout, shift in itertools.product(LAYOUTS, (0, 1, 2)):
        shifted = []
        for each in maps:
            strides = each.contiguous(memory_format=layout).stride()
            memory = torch.zeros(each.numel() + shift, dtype=dtype)
            shifted.append(memory[shift:].as_strided(each.shape, strides).copy_(each))
        found = pool(front, shifted, rois, size)
        torch.testing.assert_close(found, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


# --- what is transposed ----------------------------------------------------------------------------------------------


def launched(features: list[Tensor], rois: Tensor, workspace: Tensor, **options: Any) -> Tensor:
    """From the emulated launcher, in this workspace."""
    values = {"output_size": 3, "sampling_ratio": 2, "aligned": True, "inclusive": False, "rounded_levels": False}
    params, (output,), _held = prepared("roi_align_fpn", {"features": features, "rois": rois, **(values | options)})
    library.load("emulated").run("roi_align_fpn", params, torch.device("cpu"), workspace)
    return output


def not_a_number(features: list[Tensor]) -> Tensor:
    """A workspace for these maps, full of NaN of every type."""
    pixels = sum(each[:, 0].numel() + 256 for each in features)
    return torch.full((pixels * (features[0].shape[1] + 8) * features[0].element_size(),), 0xFF, dtype=torch.uint8)


coordinate = st.one_of(
    st.integers(-20, 90).map(lambda step: 4.0 * step),
    st.floats(-200, 500, width=32),
    st.sampled_from([-3e38, -1e7, -40000.0, 40000.0, 1e7, 3e38]),
)
special = st.sampled_from([tuple(each) for each in torch.tensor(SPECIAL_BOXES).tolist()])
box: st.SearchStrategy[tuple[float, ...]] = st.one_of(
    st.tuples(coordinate, coordinate, coordinate, coordinate), special
)


@settings(max_examples=60, deadline=None)
@given(
    boxes=st.lists(box, min_size=2, max_size=8).map(lambda each: each[: len(each) // 2 * 2]),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    ratio=st.integers(0, 3),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    dtype=st.sampled_from(TYPES),
)
def test_emulated_boxes_read_nothing_that_is_not_transposed(
    boxes: list[tuple[float, ...]], size: tuple[int, int], ratio: int, flags: tuple[bool, ...], dtype: torch.dtype
) -> None:
    aligned, inclusive, rounded = flags
    options = {"sampling_ratio": ratio, "aligned": aligned, "inclusive": inclusive, "rounded_levels": rounded}
    rois = torch.tensor(boxes, dtype=torch.float32).view(2, -1, 4)
    features = pyramid(2, 9, *size, dtype)
    last = [each.contiguous(memory_format=torch.channels_last) for each in features]
    found = launched(features, rois, not_a_number(features), **options)
    torch.testing.assert_close(found, launched(last, rois, not_a_number(last), **options))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_emulated_inverted_boxes_read_nothing_that_is_not_transposed(dtype: torch.dtype) -> None:
    """Each alone in its image, at fractions of a pixel: without `aligned` it reaches a pixel from where it starts."""
    rows = torch.arange(40.0, 48.0, 0.25)
    rois = torch.stack([torch.zeros_like(rows), rows, torch.full_like(rows, 100), torch.zeros_like(rows)], -1)[:, None]
    features = [torch.ones(1, 8, 64 // stride, 64 // stride, dtype=dtype) for stride in (1, 2, 4, 8)]
    for each, ratio in itertools.product((rois, rois.flip(-1), rois[..., [1, 0, 3, 2]]), (0, 2)):
        for box in each[:, None]:
            options = {"output_size": 1, "sampling_ratio": ratio, "aligned": False}
            found = launched(features, box, not_a_number(features), **options)
            torch.testing.assert_close(found, torch.ones_like(found), rtol=1e-2, atol=0)


def test_emulated_tiles_without_a_box_stay_as_they_are() -> None:
    """More than 256 boxes an image, of which only the last one reads P3's end."""
    features = pyramid(2, 8, 64, 96, torch.float16)
    rois = torch.tensor([8.0, 8, 40, 12]).repeat(2, 300, 1)  # rows 1 to 3 of P2, columns 1 to 10
    rois[1, 299] = torch.tensor([200.0, 90, 380, 250])  # from row 10, column 24 of P3 to its end
    workspace = not_a_number(features)
    launched(features, rois, workspace)
    left = workspace.view(torch.float16)
    for index, each in enumerate(features):
        level = left[: each.numel()].view(2, -1, 8)
        left = left[-(-each.numel() // 128) * 128 :]
        for image in (0, 1):
            tiles = level[image].split(64)
            written = [number for number, tile in enumerate(tiles) if tile.isfinite().all()]
            assert all(tile.isnan().all() for number, tile in enumerate(tiles) if number not in written)
            assert written == {(0, 0): [1, 3, 4], (0, 1): [1, 3, 4], (1, 1): list(range(7, 24))}.get((index, image), [])


def test_emulated_threads_in_any_order(other_order: None) -> None:
    features, rois = pyramid(1, 24, 40, 56), torch.tensor([[[3.0, 5, 60, 90], [0, 0, 224, 160], [9, 9, 12, 12]]])
    found = plugins_cuda.roi_align_fpn(features, rois, 7)
    last = [each.contiguous(memory_format=torch.channels_last) for each in features]
    assert torch.equal(found, plugins_cuda.roi_align_fpn(last, rois, 7))
