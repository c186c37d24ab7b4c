from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from upsnet.errors import InputError
from upsnet.geometry import ResizeRule, collate, to_network, to_original
from upsnet.photos import read_photo

COCO = ResizeRule(short_side=800, max_side=1333)
PANOPTIC_FPN = ResizeRule(short_side=800, max_side=1333, rounding="double")
sides = st.integers(1, 300)


@pytest.mark.parametrize(
    ("original", "size", "padded"),
    [
        ((480, 640), (800, 1067), (800, 1088)),
        ((640, 480), (1067, 800), (1088, 800)),
        ((800, 800), (800, 800), (800, 800)),
        ((100, 1000), (133, 1333), (160, 1344)),
        ((1, 5000), (1, 1333), (32, 1344)),
        ((1, 1), (800, 800), (800, 800)),
    ],
)
def test_network_size_by_hand(original: tuple[int, int], size: tuple[int, int], padded: tuple[int, int]) -> None:
    assert COCO.network_size(*original) == size
    assert COCO.padded_size(*size) == padded


def test_halves_round_up() -> None:
    assert ResizeRule(short_side=1, max_side=9).network_size(2, 5) == (1, 3)  # 5 / 2


def test_network_sizes_of_the_original(shared_data: Path) -> None:
    table = json.loads((shared_data / "upsnet_golden" / "sizes.json").read_text())
    for row in table["rows"]:
        case = dict(zip(table["columns"], row, strict=True))
        rule = ResizeRule(short_side=case["target"], max_side=case["max_size"])
        size = rule.network_size(case["orig_h"], case["orig_w"])
        assert size == (case["net_h"], case["net_w"])
        assert rule.padded_size(*size) == (case["pad_h"], case["pad_w"])


def test_network_sizes_of_detectron2(shared_data: Path) -> None:
    table = json.loads((shared_data / "panoptic_fpn_golden/prep.json").read_text())
    assert table["sizes_columns"] == ["h", "w", "short", "max", "new_h", "new_w"]
    for height, width, short, most, *expected in table["sizes"]:
        # not validated: in some rows the longest side is below the short one, which no configuration may ask for
        rule = ResizeRule.model_construct(short_side=short, max_side=most, divisor=32, rounding="double")
        assert [*rule.network_size(height, width)] == expected, (height, width, short, most)


def test_the_two_roundings_part_at_a_half() -> None:
    assert COCO.network_size(333, 558) == (796, 1333)  # 795.5
    assert PANOPTIC_FPN.network_size(333, 558) == (795, 1333)


@pytest.mark.parametrize("case", range(6))
def test_photos_for_detectron2(case: int, shared_data: Path) -> None:
    """To the last byte: what is resized is an image of bytes, by Pillow, in both."""
    golden = shared_data / "panoptic_fpn_golden"
    expected = json.loads((golden / "prep.json").read_text())["cases"][case]
    photo = read_photo(shared_data / "coco_sample/val2017" / expected["photo"])
    rule = ResizeRule(short_side=expected["short"], max_side=expected["max"], rounding="double")
    net = to_network(photo, rule)
    assert [*net.original] == expected["original_size"] and [*net.size] == expected["image_size"]
    assert [*net.image.shape[:2]] == expected["padded_size"]
    bgr = net.image[: net.size[0], : net.size[1], ::-1]
    with np.load(golden / "prep.npz") as arrays:
        assert np.array_equal(bgr[2::7, 3::9], arrays[f"prep_{case}_sample"])
    assert bgr.sum(axis=(0, 1), dtype=np.int64).tolist() == expected["sum_bgr"]
    assert hashlib.sha256(bgr.tobytes()).hexdigest() == expected["resized_sha256"]
    assert not net.image[net.size[0] :].any() and not net.image[:, net.size[1] :].any()


def test_the_usual_rounding_is_not_written() -> None:
    """Or no version before it would read a manifest of today."""
    assert COCO.model_dump(mode="json") == {"short_side": 800, "max_side": 1333, "divisor": 32}
    assert ResizeRule.model_validate_json(PANOPTIC_FPN.model_dump_json()) == PANOPTIC_FPN != COCO


@given(st.integers(1, 20_000), st.integers(1, 20_000))
def test_network_size_keeps_its_limits_and_flips_with_the_photo(height: int, width: int) -> None:
    size = COCO.network_size(height, width)
    assert size == COCO.network_size(width, height)[::-1]
    assert min(size) >= 1 and max(size) <= 1333 and min(size) <= 800
    assert min(size) == 800 or max(size) == 1333


@pytest.mark.parametrize("fields", [{"short_side": 0}, {"max_side": 10}, {"divisor": 0}, {"extra": 1}])
def test_rule_refuses(fields: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        ResizeRule(**{"short_side": 96, "max_side": 128, **fields})


def test_to_network_at_the_right_size_only_pads() -> None:
    photo = np.random.default_rng(0).integers(1, 256, (96, 100, 3), dtype=np.uint8)
    net = to_network(photo, ResizeRule(short_side=96, max_side=128))
    assert (net.size, net.original, net.scale) == ((96, 100), (96, 100), 1.0)
    assert net.image.shape == (96, 128, 3) and net.image.dtype == np.uint8
    assert np.array_equal(net.image[:, :100], photo) and not net.image[:, 100:].any()


def test_to_network_averages_when_it_reduces() -> None:
    photo = np.zeros((64, 64, 3), np.uint8)
    photo[::2] = 200  # without antialiasing the stripes would alias to 0 or 200
    net = to_network(photo, ResizeRule(short_side=8, max_side=8, divisor=8))
    assert abs(net.image.astype(int) - 100).max() <= 8
    assert net.scale == 1 / 8


@given(sides, sides)
@settings(max_examples=40, deadline=None)
def test_to_network_shapes_and_scale(height: int, width: int) -> None:
    rule = ResizeRule(short_side=32, max_side=64, divisor=16)
    net = to_network(np.full((height, width, 3), 255, np.uint8), rule)
    assert net.size == rule.network_size(height, width)
    assert net.image.shape[:2] == rule.padded_size(*net.size)
    assert (net.image[: net.size[0], : net.size[1]] == 255).all()
    assert net.image.sum() == 255 * 3 * net.size[0] * net.size[1]
    assert math.isclose(net.scale**2 * height * width, net.size[0] * net.size[1])


@pytest.mark.parametrize(
    "photo",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)],
)
def test_to_network_refuses_what_is_no_photo(photo: np.ndarray) -> None:
    with pytest.raises(InputError):
        to_network(photo, COCO)


def test_collate_pads_to_the_largest() -> None:
    rule = ResizeRule(short_side=32, max_side=64)
    nets = [to_network(np.full(shape, 255, np.uint8), rule) for shape in ((32, 64, 3), (50, 32, 3))]
    images, sizes, scales = collate(nets)
    assert images.shape == (2, 64, 64, 3) and images.dtype == np.uint8
    assert sizes.tolist() == [[32, 64], [50, 32]] and sizes.dtype == np.int32
    assert scales.tolist() == [1, 1] and scales.dtype == np.float32
    assert (images.reshape(2, -1).sum(1) == [255 * 3 * 32 * 64, 255 * 3 * 50 * 32]).all()
    with pytest.raises(InputError, match="at least one"):
        collate([])


def test_to_original_by_hand() -> None:
    network = np.array([[1, 2, 0], [3, 4, 0], [0, 0, 0]], np.uint8)  # 2 x 2 inside the padding
    assert to_original(network, (2, 2), (2, 2)).tolist() == [[1, 2], [3, 4]]
    assert to_original(network, (2, 2), (4, 3)).tolist() == [[1, 2, 2], [1, 2, 2], [3, 4, 4], [3, 4, 4]]
    assert to_original(network, (2, 2), (1, 1)).tolist() == [[4]]


@given(sides, sides, sides, sides)
@settings(deadline=None)
def test_to_original_has_the_exact_size_and_only_content(
    height: int, width: int, original_height: int, original_width: int
) -> None:
    rows, columns = np.mgrid[:height, :width]
    padded = np.full((height + 3, width + 5, 2), -1)
    padded[:height, :width] = np.stack([rows, columns], -1)
    out = to_original(padded, (height, width), (original_height, original_width))
    assert out.shape == (original_height, original_width, 2) and out.min() >= 0
    for axis, (size, original) in enumerate(((height, original_height), (width, original_width))):
        index = out[..., axis].take(0, axis=1 - axis)
        wanted = [min(math.floor((i + 0.5) * size / original + 1e-9), size - 1) for i in range(original)]
        assert index.tolist() == wanted


@given(sides, sides, st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_enlarging_by_a_whole_factor_and_back_is_the_identity(height: int, width: int, factor: int) -> None:
    ids = np.random.default_rng(height * 301 + width).integers(0, 9, (height, width))
    large = to_original(ids, ids.shape, (height * factor, width * factor))
    assert np.array_equal(large, ids.repeat(factor, 0).repeat(factor, 1))
    assert np.array_equal(to_original(large, large.shape, ids.shape), ids)


def test_to_original_does_not_alias_and_refuses_nonsense() -> None:
    ids = np.zeros((4, 4), np.uint8)
    to_original(ids, (4, 4), (4, 4))[:] = 1
    assert not ids.any()
    for size, original in (((5, 4), (4, 4)), ((0, 4), (4, 4)), ((4, 4), (0, 4))):
        with pytest.raises(InputError):
            to_original(ids, size, original)
