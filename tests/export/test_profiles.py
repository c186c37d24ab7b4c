"""Optimization profiles: what the resize rule gives, what a command line asks for, what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.profiles import chosen_profiles, optimization_profile
from upsnet.errors import InputError
from upsnet.geometry import ResizeRule

RULE = ResizeRule(short_side=500, max_side=1333)


def test_it_covers_what_the_resize_rule_can_give() -> None:
    low, usual, high = optimization_profile(RULE, 4)["images"]
    assert (low, high) == ((1, 32, 32, 3), (4, 1344, 1344, 3))
    assert usual == (1, 512, 672, 3)
    for height, width in ((480, 640), (640, 480), (100, 2000), (1, 1)):
        sides = [-(-side // 32) * 32 for side in RULE.network_size(height, width)]
        assert all(a <= b <= c for a, b, c in zip(low[1:3], sides, high[1:3], strict=True))


def test_without_a_word_it_is_that() -> None:
    assert chosen_profiles(RULE, 4) == (optimization_profile(RULE, 4),)


def test_batch_and_size_replace_what_they_name() -> None:
    (found,) = chosen_profiles(RULE, 4, batch=(1, 4, 8))
    assert found["images"] == ((1, 32, 32, 3), (4, 512, 672, 3), (8, 1344, 1344, 3))
    assert found["sizes"] == ((1, 2), (4, 2), (8, 2)) and found["scales"] == ((1,), (4,), (8,))
    (found,) = chosen_profiles(RULE, 4, size=("256", "512x672", "800x1344"))
    assert found["images"] == ((1, 256, 256, 3), (1, 512, 672, 3), (4, 800, 1344, 3))


def test_several_profiles() -> None:
    one, eight = chosen_profiles(RULE, 4, profiles=("1x32x32:1x512x672:1x1344x1344", "8x512x672:8x512x672:8x512x672"))
    assert one["images"][2] == (1, 1344, 1344, 3) and set(eight["images"]) == {(8, 512, 672, 3)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"batch": (4, 1, 8)}, r"^--batch: the batch 4, 1, 8 is not in order \(smallest, usual, largest\)$"),
        ({"batch": (1, 4)}, "^--batch: give three, the smallest, usual, largest, not 2$"),
        ({"batch": (0, 1, 1)}, "^--batch: the smallest batch is 0; an engine takes 1 to 1024 photos$"),
        ({"batch": (1, 1, 3 * 10**9)}, "^--batch: the largest batch is 3000000000; an engine takes 1 to 1024 photos$"),
        ({"size": ("32", "500", "1344")}, "^--size: 500 is no multiple of 32, as sides are; take 512$"),
        ({"size": ("0", "32", "64")}, "^--size: 0 is no multiple of 32, as sides are; take 32$"),
        ({"size": ("64", "32x64", "64")}, "^--size: the height 64, 32, 64 is not in order"),
        ({"size": ("small", "32", "64")}, "^--size small: give height x width, as 512x672, or one number for both$"),
        ({"profiles": ("1x32x32",)}, "^--profile 1x32x32: give smallest, usual, largest as batch x height x width"),
        ({"profiles": ("1x32x32:1x33x32:1x64x64",)}, "^--profile .*: 33 is no multiple of 32"),
        ({"profiles": ("1x32x32:" * 3,)}, "^--profile .*: give smallest, usual, largest"),
        (
            {"profiles": ("1x32x32:1x32x32:1x32x32",), "batch": (1, 1, 1)},
            "^--profile says batch and size itself; leave --batch and --size out$",
        ),
    ],
)
def test_what_is_refused(words: dict[str, tuple[int | str, ...]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        chosen_profiles(RULE, 4, **words)  # type: ignore[arg-type]


sides = st.integers(1, 40).map(lambda each: each * 32)


@given(st.lists(st.tuples(st.integers(1, 64), sides, sides), min_size=3, max_size=3))
def test_in_order_and_nothing_else(images: list[tuple[int, int, int]]) -> None:
    text = ":".join("x".join(map(str, each)) for each in images)
    ordered = all(a <= b <= c for a, b, c in zip(*images, strict=True))
    if not ordered:
        with pytest.raises(InputError, match="not in order"):
            chosen_profiles(RULE, 4, profiles=(text,))
        return
    (found,) = chosen_profiles(RULE, 4, profiles=(text,))
    assert [shape[:3] for shape in found["images"]] == images
    assert [shape[0] for shape in found["sizes"]] == [shape[0] for shape in found["scales"]] == [i[0] for i in images]
