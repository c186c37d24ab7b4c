"""Shapes -> a panoptic map: worked out by hand on small photos."""

from __future__ import annotations

import numpy as np
import pytest

from tests.upsnet.datasets.conversion.outlines import outlines
from upsnet.datasets.conversion.compose import compose
from upsnet.datasets.conversion.labels import Bitmap, LabelClass, Labels, Polygon, Rle, Shape
from upsnet.datasets.conversion.regions import rasterise
from upsnet.datasets.conversion.table import Choice, make_table
from upsnet.errors import InputError

pytest.importorskip("hotcoco", reason="painting needs hotcoco")

CLASSES = [
    LabelClass("cat", "cat", 1),
    LabelClass("dog", "dog", 2, (1, 2, 3)),
    LabelClass("sky", "sky", 7, isthing=False),
    LabelClass("old", "old", 9),
]
TABLE = make_table(CLASSES, Choice(void=["old"]))


def rectangle(key: str, x1: int, y1: int, x2: int, y2: int, **more: bool) -> Shape:
    ring = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], float)
    return Shape(key, (Polygon((ring,)),), f"{key} at {x1}", **more)


def test_the_smaller_shape_is_on_top() -> None:
    shapes = [rectangle("cat", 1, 1, 3, 3), rectangle("dog", 0, 0, 6, 4)]
    made = compose(Labels(shapes), (4, 8), TABLE, "smaller")
    expected = np.zeros((4, 8), int)
    expected[0:4, 0:6] = 2
    expected[1:3, 1:3] = 1
    assert (made.ids == expected).all()
    assert made.segments == [
        {"id": 1, "category_id": 1, "area": 4, "bbox": [1, 1, 2, 2], "iscrowd": 0},
        {"id": 2, "category_id": 2, "area": 20, "bbox": [0, 0, 6, 4], "iscrowd": 0},
    ]
    assert made.contested == 4
    assert (made.counts["dog"].covered, made.counts["cat"].covered, made.counts[""].pixels) == (4, 0, 8)


@pytest.mark.parametrize(("overlap", "top"), [("later", 2), ("earlier", 1)])
def test_the_order_given(overlap: str, top: int) -> None:
    shapes = [rectangle("cat", 0, 0, 3, 1), rectangle("dog", 1, 0, 5, 1)]
    made = compose(Labels(shapes), (1, 5), TABLE, overlap)  # type: ignore[arg-type]
    assert made.ids.tolist() == [[1, top, top, 2, 2]]
    assert made.contested == 2


def test_crowds_are_lowest_and_one_segment_a_class() -> None:
    shapes = [rectangle("cat", x, 0, x + 2, 1, crowd=True) for x in (0, 1)] + [rectangle("dog", 0, 0, 1, 1)]
    made = compose(Labels(shapes), (1, 4), TABLE, "smaller")
    assert made.ids.tolist() == [[2, 1, 1, 0]]
    assert [info["iscrowd"] for info in made.segments] == [1, 0]
    assert made.contested == 1  # the two crowds are one segment and contest nothing of each other


def test_stuff_is_one_segment_and_void_is_painted() -> None:
    shapes = [rectangle("sky", 0, 0, 2, 1), rectangle("sky", 4, 0, 6, 1), rectangle("old", 1, 0, 5, 1)]
    made = compose(Labels(shapes), (1, 8), TABLE, "later")
    assert made.ids.tolist() == [[1, 0, 0, 0, 0, 1, 0, 0]]
    assert len(made.segments) == 1
    table = make_table(CLASSES, Choice(void=["old"], background="rest"))
    made = compose(Labels(shapes), (1, 8), table, "later")
    assert made.ids.tolist() == [[1, 0, 0, 0, 0, 1, 2, 2]]  # what is marked as void stays so
    assert made.segments[1]["category_id"] == 8


def test_a_semantic_map_lies_below_and_contests_nothing() -> None:
    ground = Shape("sky", (Bitmap(np.ones((2, 4), bool)),), "the map", is_ground=True)
    made = compose(Labels([rectangle("cat", 0, 0, 4, 1), ground]), (2, 4), TABLE, "later")
    assert made.ids.tolist() == [[1] * 4, [2] * 4]
    assert made.contested == 0


def test_what_becomes_no_segment_is_said() -> None:
    shapes = [rectangle("cat", 0, 0, 1, 1), rectangle("dog", 0, 0, 2, 1), rectangle("cat", 5, 0, 7, 1)]
    made = compose(Labels(shapes), (1, 4), TABLE, "later")
    assert made.lost == ["cat at 5: holds no pixel", "cat at 0: covered whole"]
    assert (made.counts["cat"].hidden, made.counts["cat"].empty, made.counts["cat"].segments) == (1, 1, 0)


@pytest.mark.parametrize(("boxes", "ids"), [("fill", [[1, 1, 0]]), ("skip", [[0, 0, 0]]), ("crowd", [[1, 1, 0]])])
def test_boxes(boxes: str, ids: list[list[int]]) -> None:
    labels = Labels([rectangle("cat", 0, 0, 2, 1, is_box=True)])
    made = compose(labels, (1, 3), TABLE, "later", boxes)  # type: ignore[arg-type]
    assert made.ids.tolist() == ids
    assert [info["iscrowd"] for info in made.segments] == {"fill": [0], "skip": [], "crowd": [1]}[boxes]
    with pytest.raises(InputError, match="cat at 0: a box, which has no outline; --boxes fill"):
        compose(labels, (1, 3), TABLE, "later")


def test_outlines_come_back_exactly() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        mask = rng.random(rng.integers(1, 24, 2)) < rng.uniform(0.1, 0.9)
        pieces = [
            Polygon((np.array(outer, float),), tuple(np.array(hole, float) for hole in holes))
            for outer, holes in outlines(mask)
        ]
        window = rasterise(Shape("cat", tuple(pieces), "it"), mask.shape)
        back = np.zeros(mask.shape, bool)
        back[window.place] = window.mask
        assert (back == mask).all()


@pytest.mark.parametrize("digits", [0, 1, 12])
@pytest.mark.parametrize("reach", [0.0, 0.5])
def test_polygons_are_pycocotools(digits: int, reach: float) -> None:
    """Pixel for pixel, also where a polygon reaches over the border, though only its own box is painted."""
    from pycocotools import mask as coco

    rng = np.random.default_rng(2)
    for _ in range(100):
        size = int(rng.integers(1, 50)), int(rng.integers(1, 50))
        sides = np.array(size[::-1])
        low, high = np.sort(rng.uniform(-reach, 1 + reach, (2, 2)), axis=0)
        ring = np.round(rng.uniform(low, high, (int(rng.integers(3, 12)), 2)) * sides, digits)
        window = rasterise(Shape("cat", (Polygon((ring,)),), "it"), size)
        found = np.zeros(size, bool)
        found[window.place] = window.mask
        expected = coco.decode(coco.frPyObjects([ring.reshape(-1).tolist()], *size))[..., 0]
        assert (found == expected).all()


def test_run_lengths_and_bitmaps() -> None:
    mask = np.array([[0, 1, 1], [0, 0, 1]], bool)
    for region in (Rle([2, 1, 1, 2], (2, 3)), Bitmap(mask), Bitmap(np.pad(mask, 2), -2, -2)):
        window = rasterise(Shape("cat", (region,), "it"), (2, 3))
        assert (window.x, window.y) == (1, 0)
        assert (window.mask == mask[:, 1:]).all()


def test_compressed_run_lengths() -> None:
    rng = np.random.default_rng(1)
    rle = pytest.importorskip("hotcoco").mask
    for _ in range(100):
        mask = rng.random(rng.integers(1, 60, 2)) < rng.uniform(0, 1)
        code = rle.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
        window = rasterise(Shape("cat", (Rle(code, mask.shape),), "it"), mask.shape)
        back = np.zeros(mask.shape, bool)
        back[window.place] = window.mask
        assert (back == mask).all()
        for cut in range(0, len(code), 7):
            with pytest.raises(InputError, match="it: its run-length code"):
                rasterise(Shape("cat", (Rle(code[:cut], mask.shape),), "it"), mask.shape)


@pytest.mark.parametrize(
    ("region", "fault"),
    [
        (Rle([2, 1], (2, 3)), "covers 3 pixels, the photo has 6"),
        (Rle([7, -1], (2, 3)), "negative length"),
        (Rle([6], (3, 2)), r"is of 2 x 3 pixels, the photo is 3 x 2 \(width x height\)"),
        (Rle(b"\xff", (2, 3)), "is damaged or cut off"),
        (Rle(b"oooooooooooooooo1", (2, 3)), "is damaged or cut off"),
        (Rle(b"ooooooo1", (2, 3)), "covers [0-9]+ pixels, the photo has 6"),
        (Rle(b"", (2, 3)), "damaged"),
        (Polygon((np.array([[0, 0], [np.nan, 1], [1, 1.0]]),)), "not a finite number"),
        (Polygon((np.array([[0, 0], [640, 1], [1, 1.0]]),)), r"the point \(640, 1\) is far outside"),
    ],
)
def test_shapes_that_cannot_be_painted(region: Rle | Polygon, fault: str) -> None:
    with pytest.raises(InputError, match=f"^it: .*{fault}"):
        rasterise(Shape("cat", (region,), "it"), (2, 3))
