"""Which photos are the same picture."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from tests.upsnet.datasets.splitting.pictures import picture
from upsnet.datasets.splitting.duplicates import COARSE, FINE, join_alike, join_equal, join_same_files
from upsnet.datasets.splitting.fingerprint import Fingerprint, fingerprint, mirrored
from upsnet.errors import InputError


def prints_of(folder: Path, images: list[Image.Image], suffix: str = ".png", **options: Any) -> list[Fingerprint]:
    paths = [folder / f"{index}{suffix}" for index in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        image.save(path, **options)
    return [fingerprint(path) for path in paths]


def alike(one: Fingerprint, other: Fingerprint) -> bool:
    groups = np.arange(2)
    join_alike(groups, [one, other])
    return bool(groups[1] == 0)


def cropped(image: Image.Image, share: float) -> Image.Image:
    width, height = image.size
    left, top = round((1 - share) * width * 0.7), round((1 - share) * height * 0.3)
    return image.crop((left, top, left + round(share * width), top + round(share * height)))


WAYS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "100 x 80": lambda image: image.resize((100, 80)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.6),
    "more contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.4),
    "grey": lambda image: image.convert("L"),
    "98 % of each side": lambda image: cropped(image, 0.98),
    "turned by a degree": lambda image: image.rotate(1),
    "mirrored": ImageOps.mirror,
}


@pytest.mark.parametrize("way", WAYS)
def test_photos_that_were_changed(shared_data: Path, tmp_path: Path, way: str) -> None:
    paths = sorted((shared_data / "coco_sample" / "val2017").glob("*.jpg"))
    changed = [WAYS[way](Image.open(path)) for path in paths]
    prints = [fingerprint(path) for path in paths] + prints_of(tmp_path, changed, ".jpg", quality=30)
    groups = np.arange(8)
    join_alike(groups, prints)
    assert groups.tolist() == [0, 1, 2, 3] * 2  # each with its own, and the four apart


def test_parts_of_photos_are_other_pictures(shared_data: Path, tmp_path: Path) -> None:
    parts = []
    for path in sorted((shared_data / "coco_sample" / "val2017").glob("*.jpg")):
        image = Image.open(path).resize((256, 192))
        parts += [image.crop((x, y, x + 128, y + 96)) for y in (0, 96) for x in (0, 128)]
    groups = np.arange(16)
    join_alike(groups, prints_of(tmp_path, parts))
    assert groups.tolist() == list(range(16))


def test_what_is_not_found(shared_data: Path, tmp_path: Path) -> None:
    """Three quarters of a photo, and one upside down, are other pictures: --keep-together is for those."""
    image = Image.open(shared_data / "coco_sample" / "val2017" / "000000142238.jpg")
    whole, part, turned = prints_of(tmp_path, [image, cropped(image, 0.75), ImageOps.flip(image)], ".jpg")
    assert not alike(whole, part) and not alike(whole, turned)


def test_pictures_in_any_format_and_orientation(tmp_path: Path) -> None:
    image = picture(1, 240, 320)
    upright = prints_of(tmp_path, [image])[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter to the right
    stored = image.transpose(Image.Transpose.ROTATE_90)
    for suffix, options in ((".jpg", {"exif": exif}), (".png", {"exif": exif})):
        assert alike(upright, prints_of(tmp_path, [stored], suffix, **options)[0])
    assert alike(upright, prints_of(tmp_path, [image.convert("CMYK")], ".jpg")[0])
    assert not alike(upright, prints_of(tmp_path, [stored], ".jpg")[0])


def test_the_mirror_of_the_bits_is_that_of_the_picture(tmp_path: Path) -> None:
    one, other = prints_of(tmp_path, [picture(2), ImageOps.mirror(picture(2))])
    assert np.array_equal(mirrored(one.bits), other.bits) and not np.array_equal(one.bits, other.bits)


def test_flat_photos_are_the_same_only_as_files(tmp_path: Path) -> None:
    prints = prints_of(tmp_path, [Image.new("RGB", (64, 64), color) for color in ("black", "white", "black")])
    assert all(each.is_flat for each in prints)
    groups = np.arange(3)
    join_alike(groups, prints)
    assert groups.tolist() == [0, 1, 2]
    join_same_files(groups, prints)
    assert groups.tolist() == [0, 1, 0]


def test_a_photo_that_cannot_be_read(tmp_path: Path) -> None:
    broken = tmp_path / "a.jpg"
    broken.write_bytes(b"no photo")
    for path in (broken, tmp_path / "none.jpg"):
        with pytest.raises(InputError, match=rf"{path.name}: "):
            fingerprint(path)


def of_bits(bits: np.ndarray) -> list[Fingerprint]:
    bits[:, 0, 0] = False
    return [Fingerprint(bytes([index % 256]), each, False) for index, each in enumerate(bits)]


@pytest.mark.parametrize("mirror", [False, True])
def test_as_many_bits_as_may_differ(mirror: bool) -> None:
    bits = np.random.default_rng(0).random((1, 16, 16)) < 0.5
    coarse = [(y, x) for y in range(8) for x in range(8)][1:]
    fine = [(y, x) for y in range(16) for x in range(8, 16)]
    for places, expected in (
        (coarse[:COARSE], True),
        (coarse[-COARSE:], True),
        (coarse[: COARSE + 1], False),
        (coarse[:COARSE] + fine[: FINE - COARSE], True),
        (coarse[:COARSE] + fine[: FINE - COARSE + 1], False),
    ):
        other = bits.copy()
        other[:, *np.array(places).T] ^= True
        other = mirrored(other) if mirror else other
        assert alike(*of_bits(np.concatenate([bits, other]))) == expected


def test_the_groups_are_those_of_all_pairs() -> None:
    """Chains too: a like b, b like c."""
    random = np.random.default_rng(3)
    bits = random.random((150, 16, 16)) < random.random((16, 16))
    for index in range(20, 80):  # chains of copies with errors, some mirrored
        bits[index] = bits[index - 20] ^ (random.random((16, 16)) < random.choice([0.03, 0.1, 0.2]))
        bits[index] = mirrored(bits[index]) if index % 3 == 0 else bits[index]
    bits[100:] = bits[7] ^ (random.random((50, 16, 16)) < 0.02)  # a camera that stands still
    prints = of_bits(bits)
    expected = np.arange(150)
    for i, j in combinations(range(150), 2):
        for other in (bits[j], mirrored(bits[j])):
            differ = bits[i] ^ other
            if differ[:8, :8].sum() <= COARSE and differ.sum() <= FINE:
                expected[expected == expected[j]] = expected[i]
    groups = np.arange(150)
    join_alike(groups, prints)
    assert partition(groups) == partition(expected) and 40 < len(set(groups)) < 90
    groups, order = np.arange(150), random.permutation(150)
    join_alike(groups, [prints[index] for index in order])
    assert partition(order[groups], order) == partition(expected)


def partition(groups: np.ndarray, names: np.ndarray | None = None) -> set[frozenset[int]]:
    members: dict[int, set[int]] = {}
    for index, group in enumerate(groups.tolist()):
        members.setdefault(group, set()).add(index if names is None else int(names[index]))
    return {frozenset(each) for each in members.values()}


def test_keys_and_what_was_joined_before() -> None:
    groups = np.arange(6)
    join_equal(groups, ["a", None, None, "b", "a", "b"])
    assert groups.tolist() == [0, 1, 2, 3, 0, 3]
    join_equal(groups, [None, None, "c", "c", None, None])
    assert groups.tolist() == [0, 1, 2, 2, 0, 2]
    bits = np.random.default_rng(0).random((6, 16, 16)) < 0.5
    bits[5] = bits[1]
    join_alike(groups, of_bits(bits))
    assert groups.tolist() == [0, 1, 1, 1, 0, 1]
