"""The harder synthetic data set: deterministic, and with classes that nothing but their context tells apart."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from upsnet.datasets.scene import SIZES, Scene, draw_scene
from upsnet.datasets.shapes import STAMP, main, write_shapes
from upsnet.datasets.synthetic.canvas import Canvas
from upsnet.datasets.synthetic.draws import Draws
from upsnet.datasets.synthetic.settings import EASY, HARD
from upsnet.datasets.synthetic.stuff import classes_in_context, neighbours
from upsnet.datasets.synthetic.things import shape_mask

THINGS = {each.id: each for each in HARD.things}
STUFF = {each.id: each for each in HARD.stuff}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(0, index, setting=HARD) for index in range(60)]


@pytest.mark.parametrize(
    ("seed", "index", "expected"),
    [(0, 0, "18fe7e43761ff095"), (0, 1_000_000, "a6c94eff3051610d"), (7, 3, "3e06bd81dfd57070")],
)
def test_the_same_pixels_on_every_machine(seed: int, index: int, expected: str) -> None:
    scene = draw_scene(seed, index, setting=HARD)
    told = scene.image.tobytes() + scene.ids.astype("<i4").tobytes() + json.dumps(scene.segments).encode()
    assert hashlib.sha256(told).hexdigest()[:16] == expected


def test_canvases_are_those_of_the_easy_one_and_all_classes_occur(scenes: list[Scene]) -> None:
    assert {scene.ids.shape for scene in scenes} == set(SIZES)
    seen = Counter(segment["category_id"] for scene in scenes for segment in scene.segments)
    assert seen.keys() == {category["id"] for category in HARD.categories}
    assert min(seen.values()) >= 8
    things = [sum(s["category_id"] in THINGS for s in scene.segments) for scene in scenes]
    assert max(things) <= 21 and np.mean(things) > 11


def test_things_of_a_class_differ_threefold_in_size(scenes: list[Scene]) -> None:
    assert all(each.radii[1] == 3 * each.radii[0] for each in HARD.things if not each.in_row)
    longest = {
        id: [max(s["bbox"][2:]) for scene in scenes for s in scene.segments if s["category_id"] == id] for id in (2, 9)
    }
    assert all(np.quantile(sides, 0.95) > 2 * np.quantile(sides, 0.05) for sides in longest.values())


def test_thin_shapes_known_answers() -> None:
    at = np.array([-1025, -1024, -700, -699, 0, 256, 257, 699, 700, 1024, 1025])
    zero = np.zeros_like(at)
    ends = [False, True, True, *[False] * 5, True, True, False]
    assert shape_mask("ring", at, zero).tolist() == shape_mask("ring", zero, at).tolist() == ends
    assert shape_mask("arc", at, zero).tolist() == ends
    assert shape_mask("arc", zero, at).tolist() == [False, True, True, *[False] * 8]  # open below
    assert shape_mask("arc", np.array([800, 800]), np.array([256, 257])).tolist() == [True, False]
    u, v = np.array([-600, -740, 0, 720, 721, 0, -741, -600]), np.array([-720, 0, 740, 600, 600, 0, 600, 741])
    assert shape_mask("bent stick", u, v).tolist() == [True, True, True, True, False, False, False, False]


def test_regions_and_the_classes_that_their_neighbours_make_them() -> None:
    region = np.repeat([[0] * 12 + [1] * 12 + [2] * 12], 12, axis=0)
    region[:3, 24:] = 0  # now 0 meets 2 along 12 pixels and 1 along 12 + 3; 1 and 2 meet along 9, which are too few
    assert [neighbours(region, row) for row in range(3)] == [{1, 2}, {0}, {0}]
    region[:3, 24:] = 2
    assert [neighbours(region, row) for row in range(3)] == [{1}, {0, 2}, {1}]

    def names(*patterns: str, light: str = "above") -> list[str] | None:
        found = classes_in_context(HARD, light, region, list(patterns))  # type: ignore[arg-type]
        return None if found is None else [each.name for each in found]

    assert names("grit", "checks", "dots") == ["grit by checks", "checks", "dots"]
    assert names("checks", "dots", "grit") == ["checks", "dots", "grit by dots"]
    assert names("checks", "grit", "dots") is None  # beside both
    assert names("checks", "clouds", "grit") is None  # beside neither
    assert names("weave", "dots", "clouds") == ["weave lit from above", "dots", "clouds"]
    assert names("weave", "dots", "clouds", light="below") == ["weave lit from below", "dots", "clouds"]


def test_grit_is_of_the_class_of_its_neighbour(scenes: list[Scene]) -> None:
    """As far as things leave the border to be seen."""
    ids = {each.name: each.id for each in HARD.stuff}
    right = wrong = 0
    for scene in scenes:
        category = np.zeros_like(scene.ids)
        for segment in scene.segments:
            category[scene.ids == segment["id"]] = segment["category_id"]
        for beside, other in (("checks", "dots"), ("dots", "checks")):
            grit = category == ids[f"grit by {beside}"]
            around = category[ndimage.binary_dilation(grit, iterations=4)]
            right += (around == ids[beside]).sum() > (around == ids[other]).sum()
            wrong += (around == ids[beside]).sum() < (around == ids[other]).sum()
    assert right > 15 and wrong == 0


def test_weave_is_of_the_class_of_the_light(scenes: list[Scene]) -> None:
    """Within each region of stuff, pixels are brighter towards the light."""
    lights, right = Counter[str](), 0
    for scene in scenes:
        lit = [STUFF[s["category_id"]].light for s in scene.segments if s["category_id"] in STUFF]
        told = {light for light in lit if light}
        assert len(told) <= 1
        slope = 0.0
        for segment in (s for s in scene.segments if s["category_id"] in STUFF):
            rows, columns = np.nonzero(scene.ids == segment["id"])
            slope += len(rows) * np.cov(rows, scene.image[rows, columns].mean(1))[0, 1]
        lights.update(told)
        right += ("above" if slope < 0 else "below") in told
    assert min(lights["above"], lights["below"]) > 5
    assert right >= 0.95 * (lights["above"] + lights["below"])


def test_classes_of_one_pattern_and_of_one_shape_differ_in_nothing_else() -> None:
    assert [(each.pattern, each.look) for each in HARD.stuff[-4:]] == [("grit", 5)] * 2 + [("weave", 6)] * 2
    disk, bead = THINGS[1], THINGS[15]
    assert (bead.shape, bead.look) == (disk.shape, disk.look)
    assert disk.radii[0] <= bead.radii[0] and bead.radii[1] <= disk.radii[1]


@pytest.mark.parametrize("seed", range(8))
def test_beads_lie_in_a_straight_line_one_diameter_apart(seed: int) -> None:
    canvas = Canvas(Draws(seed), HARD, 96, 128)
    canvas.row(7, 5)
    assert [HARD.things[each.kind].name for each in canvas.things] == ["bead"] * len(canvas.things)
    assert len({each.reach for each in canvas.things}) == 1 and len(canvas.things) >= 4
    first, last = (np.array(canvas.things[i].centre) for i in (0, -1))
    for share, thing in zip(np.linspace(0, 1, len(canvas.things)), canvas.things, strict=True):
        assert np.abs(first + share * (last - first) - thing.centre).max() <= 1
    steps = np.diff([each.centre for each in canvas.things], axis=0)
    assert np.abs(np.hypot(*steps.T) - canvas.things[0].reach).max() < 1.5


def test_a_canvas_too_small_for_a_row_goes_without() -> None:
    """Nine beads of the least size are a line of 104 pixels."""
    canvas = Canvas(Draws(0), HARD, 64, 64)
    canvas.row(7, 9)
    assert not canvas.things
    assert draw_scene(0, 25, ((64, 64),), HARD).ids.shape == (64, 64)


def test_a_folder_knows_its_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    easy = write_shapes(tmp_path / "s", {"val": 1}, progress=False)
    assert "setting" not in json.loads((easy / STAMP).read_text())  # as those that are there have it
    photo = easy / "val" / "000001000001.png"
    before = photo.read_bytes()
    write_shapes(tmp_path / "s", {"val": 1}, progress=False, hard=True)
    after = photo.read_bytes()
    assert before != after
    content = json.loads((easy / "val.json").read_text())
    assert content["categories"] == HARD.categories != EASY.categories
    assert content["info"]["description"] == "shapes_hard (val), synthetic"
    monkeypatch.chdir(tmp_path)
    main(train=1, val=1, hard=True)
    assert (tmp_path / "data" / "shapes_hard" / "val" / photo.name).read_bytes() == after, "not over the easy one"
