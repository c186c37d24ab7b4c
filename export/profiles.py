"""Optimization profiles: the smallest, usual and largest shape of each input that an engine is built for."""

from __future__ import annotations

import re
from collections.abc import Sequence

from upsnet.engines.manifest import Profile
from upsnet.errors import InputError
from upsnet.geometry import ResizeRule

Triple = tuple[int, int, int]
Image = tuple[int, int, int]  # batch, height, width
MOST_BATCH = 1024  # more photos at once than any GPU has memory for
WORDS = ("smallest", "usual", "largest")


def optimization_profile(resize: ResizeRule, max_batch: int) -> Profile:
    """Smallest, usual (one photo of 4:3) and largest (`max_batch` of the longest side) shape of each input."""
    low, usual, high = _default_sizes(resize)
    return _profile((1, *low), (1, *usual), (max_batch, *high))


def chosen_profiles(
    resize: ResizeRule,
    max_batch: int,
    batch: Sequence[int] = (),
    size: Sequence[str] = (),
    profiles: Sequence[str] = (),
) -> tuple[Profile, ...]:
    """The profiles that a command line asks for; without a word, `optimization_profile`'s.

    batch, size: smallest, usual and largest of the one profile; a size is "HxW", or one number for both. profiles: each
    "1x32x32:1x512x672:4x1344x1344", batch x height x width. InputError where a side is no multiple of the resize rule's
    divisor, where the three is not in order, and where profiles come with batch or size.
    """
    if profiles:
        if batch or size:
            raise InputError("--profile says batch and size itself; leave --batch and --size out")
        return tuple(_parse(text, resize) for text in profiles)
    batches = tuple(batch) or (1, 1, max_batch)
    sizes = tuple(_parse_size(each) for each in size) or _default_sizes(resize)
    for name, found in (("--batch", batches), ("--size", sizes)):
        if len(found) != 3:
            raise InputError(f"{name}: give three, the {', '.join(WORDS)}, not {len(found)}")
    images = [(number, *sides) for number, sides in zip(batches, sizes, strict=True)]
    return (_checked(images, resize, "--batch and --size" if batch and size else "--batch" if batch else "--size"),)


def _default_sizes(resize: ResizeRule) -> tuple[tuple[int, int], ...]:
    def padded(side: int) -> int:
        return -(-side // resize.divisor) * resize.divisor

    low, high = resize.divisor, padded(resize.max_side)
    usual = (padded(resize.short_side), padded(min(resize.max_side, round(resize.short_side * 4 / 3))))
    return (low, low), usual, (high, high)


def _profile(*images: Image) -> Profile:
    low, usual, high = images
    return {
        "images": ((*low, 3), (*usual, 3), (*high, 3)),
        "sizes": ((low[0], 2), (usual[0], 2), (high[0], 2)),
        "scales": ((low[0],), (usual[0],), (high[0],)),
    }


def _parse(text: str, resize: ResizeRule) -> Profile:
    parts = [re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})x([0-9]{1,6})", part) for part in text.split(":")]
    images = [tuple(map(int, part.groups())) for part in parts if part]
    if len(images) != 3 or len(parts) != 3:
        raise InputError(
            f"--profile {text}: give {', '.join(WORDS)} as batch x height x width: 1x32x32:1x512x672:4x1344x1344"
        )
    return _checked(images, resize, f"--profile {text}")  # type: ignore[arg-type]


def _parse_size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,6})(?:x([0-9]{1,6}))?", text)
    if found is None:
        raise InputError(f"--size {text}: give height x width, as 512x672, or one number for both")
    return int(found[1]), int(found[2] or found[1])


def _checked(images: Sequence[Image], resize: ResizeRule, option: str) -> Profile:
    for word, (batch, *sides) in zip(WORDS, images, strict=True):
        if not 1 <= batch <= MOST_BATCH:
            raise InputError(f"{option}: the {word} batch is {batch}; an engine takes 1 to {MOST_BATCH} photos")
        for side in sides:
            if side < 1 or side % resize.divisor:
                near = max(1, round(side / resize.divisor)) * resize.divisor
                raise InputError(f"{option}: {side} is no multiple of {resize.divisor}, as sides are; take {near}")
    for name, *three in zip(("batch", "height", "width"), *images, strict=True):
        low, usual, high = three
        if not low <= usual <= high:
            raise InputError(f"{option}: the {name} {low}, {usual}, {high} is not in order ({', '.join(WORDS)})")
    return _profile(*images)  # type: ignore[arg-type]
