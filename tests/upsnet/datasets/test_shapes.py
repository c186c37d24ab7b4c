"""The synthetic data set: deterministic, official in form, and not solvable by semantics or colour alone."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from upsnet.datasets import shapes
from upsnet.datasets.coco_format import read_panoptic_png
from upsnet.datasets.scene import SIZES, Scene, draw_scene
from upsnet.datasets.shapes import main, write_shapes
from upsnet.datasets.synthetic.settings import EASY
from upsnet.datasets.synthetic.things import shape_mask
from upsnet.errors import InputError
from upsnet.metrics.pq_files import PQStat

CATEGORIES = EASY.categories
THING_IDS = {each.id for each in EASY.things}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


@pytest.fixture(scope="module")
def val(shapes_folder: Path) -> list[tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]]:
    """Photo, ids and segments_info of each validation image, read back from the files."""
    content = json.loads((shapes_folder / "val.json").read_text())
    return [
        (
            np.asarray(Image.open(shapes_folder / "val" / a["file_name"])),
            read_panoptic_png(shapes_folder / "panoptic_val" / a["file_name"]),
            a["segments_info"],
        )
        for a in content["annotations"]
    ]


@pytest.mark.parametrize(
    ("seed", "index", "image", "ids", "segments"),
    [
        (0, 0, "434f67fccf34bf09", "4c8caf381f94c29a", "6f8c5aa22f6e7923"),
        (0, 1_000_000, "5e17656ebbec374d", "b886ac06e9ffe5b5", "29bf155359aaf7e9"),
        (7, 3, "3fe26efddada5487", "0c18b10b955828fe", "f9a2c996efca3d52"),
    ],
)
def test_the_same_pixels_on_every_machine(seed: int, index: int, image: str, ids: str, segments: str) -> None:
    scene = draw_scene(seed, index)
    assert digest(scene.image.tobytes()) == image
    assert digest(scene.ids.astype("<i4").tobytes()) == ids
    assert digest(json.dumps(scene.segments).encode()) == segments


def test_files_are_equal_in_two_runs_and_do_not_depend_on_the_counts(shapes_folder: Path, tmp_path: Path) -> None:
    again = write_shapes(tmp_path / "again", {"train": 3, "val": 2}, progress=False)
    written = sorted(p.relative_to(again) for p in again.rglob("*.png"))
    assert len(written) == 10
    for path in written:
        assert (again / path).read_bytes() == (shapes_folder / path).read_bytes()


def test_splits_and_seeds_share_no_scene() -> None:
    photos = {draw_scene(seed, index).image.tobytes() for seed in (0, 1) for index in (0, 1, 1_000_000, 1_000_001)}
    assert len(photos) == 8


def test_json_is_official_and_tells_what_the_pngs_hold(shapes_folder: Path) -> None:
    content = json.loads((shapes_folder / "train.json").read_text())
    assert content["info"] and content["categories"] == CATEGORIES
    for category in content["categories"]:
        assert category.keys() == {"id", "name", "supercategory", "isthing", "color"}
    assert [i["id"] for i in content["images"]] == list(range(1, 25))
    for image, annotation in zip(content["images"], content["annotations"], strict=True):
        assert image["id"] == annotation["image_id"]
        assert image["file_name"] == annotation["file_name"] == f"{image['id']:012d}.png"
        ids = read_panoptic_png(shapes_folder / "panoptic_train" / annotation["file_name"])
        photo = Image.open(shapes_folder / "train" / image["file_name"])
        assert ids.shape == (image["height"], image["width"]) == photo.size[::-1]
        assert photo.mode == "RGB"
        segments = {s["id"]: s for s in annotation["segments_info"]}
        assert len(segments) == len(annotation["segments_info"])
        assert set(np.unique(ids).tolist()) == {0, *segments}
        for number, segment in segments.items():
            rows, columns = np.nonzero(ids == number)
            assert segment["area"] == len(rows)
            assert segment["bbox"] == [
                columns.min(), rows.min(), columns.max() - columns.min() + 1, rows.max() - rows.min() + 1,
            ]  # fmt: skip


def test_ids_use_all_three_bytes(val: list) -> None:
    ids = np.array([s["id"] for _, _, segments in val for s in segments])
    assert ((ids & 255 > 0) & (ids >> 8 & 255 > 0) & (ids >> 16 > 0)).all()
    assert len(np.unique(ids)) > len(ids) // 2


def test_sizes_crowds_voids_and_numbers_of_things_vary(val: list) -> None:
    assert {ids.shape for _, ids, _ in val} == set(SIZES)
    crowds = [s for _, _, segments in val for s in segments if s["iscrowd"]]
    assert len(val) // 8 < len(crowds) < len(val) // 2
    assert {s["category_id"] for s in crowds} <= THING_IDS
    void = np.array([(ids == 0).mean() for _, ids, _ in val])
    assert (void > 0).all() and void.max() < 0.1
    things = [sum(s["category_id"] in THING_IDS and not s["iscrowd"] for s in segments) for _, _, segments in val]
    assert min(things) >= 5 and max(things) <= 16 and 8 < np.mean(things) < 13
    seen = Counter(s["category_id"] for _, _, segments in val for s in segments)
    assert all(seen[c["id"]] > len(val) // 3 for c in CATEGORIES)


def test_perfect_semantics_with_connected_components_are_not_enough(val: list) -> None:
    stat = PQStat()
    for _, ids, segments in val:
        category = np.zeros_like(ids)
        for segment in segments:
            category[ids == segment["id"]] = segment["category_id"]
        predicted, found = np.zeros_like(ids), list[dict[str, int]]()
        for number in np.unique(category[category > 0]).tolist():
            parts = ndimage.label(category == number)[0] if number in THING_IDS else (category == number).astype(int)
            for part in range(1, parts.max() + 1):
                found.append({"id": len(found) + 1, "category_id": number})
                predicted[parts == part] = len(found)
        stat.accumulate(ids, segments, predicted, found)
    results = stat.results(CATEGORIES)["results"]
    assert results["Stuff"]["pq"] == 1.0
    assert 0.15 < results["Things"]["pq"] < 0.45


def test_colour_alone_does_not_tell_things_from_stuff() -> None:
    def pixels(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
        things = np.isin(scene.ids, [s["id"] for s in scene.segments if s["category_id"] in THING_IDS])
        known = scene.ids > 0
        return (scene.image[known] >> 4).astype(int) @ [256, 16, 1], things[known]

    def gather(first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        colours, things = zip(*(pixels(draw_scene(0, i)) for i in range(first, first + count)), strict=True)
        return np.concatenate(colours), np.concatenate(things)

    colours, things = gather(0, 40)
    likely = [np.bincount(colours[things == t], minlength=4096) / (things == t).sum() for t in (False, True)]
    colours, things = gather(1000, 20)
    guess = (likely[1] > likely[0])[colours]  # the best classifier by colour histogram
    assert (guess[things].mean() + (~guess[~things]).mean()) / 2 < 0.75


def test_shape_masks_known_answers() -> None:
    half = np.array([-1100, -1024, -725, -724, 0, 512, 724, 1024])
    zero = np.zeros_like(half)
    assert shape_mask("disk", half, zero).tolist() == [False, True, True, True, True, True, True, True]
    assert shape_mask("square", half, zero).tolist() == [False, False, False, True, True, True, True, False]
    assert shape_mask("triangle", zero, half).tolist() == [False, True, True, True, True, True, False, False]
    assert shape_mask("star", zero, half).tolist() == [False, True, True, True, True, True, False, False]


def test_a_data_set_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    folder = write_shapes(tmp_path / "s", {"val": 2}, progress=False)
    photo = folder / "val" / "000001000001.png"
    before = photo.stat().st_mtime_ns, photo.read_bytes()
    write_shapes(folder, {"val": 2}, progress=False)
    assert (photo.stat().st_mtime_ns, photo.read_bytes()) == before
    write_shapes(folder, {"val": 1}, seed=1, sizes=((64, 80),), progress=False)
    assert photo.read_bytes() != before[1]
    assert [p.name for p in (folder / "val").iterdir()] == ["000001000001.png"]
    assert Image.open(photo).size == (80, 64)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]  # nothing temporary is left


@pytest.mark.parametrize("lost", ["val.json", "train/000000000002.png", "panoptic_val"])
def test_a_data_set_that_has_lost_files_is_written_again(tmp_path: Path, lost: str) -> None:
    folder = write_shapes(tmp_path / "shapes", {"train": 2, "val": 1}, progress=False)
    whole = sorted(folder.rglob("*"))
    if (folder / lost).is_dir():
        shutil.rmtree(folder / lost)
    else:
        (folder / lost).unlink()
    write_shapes(folder, {"train": 2, "val": 1}, progress=False)
    assert sorted(folder.rglob("*")) == whole


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(seed: int, index: int, sizes: object, setting: object) -> Scene:
        if index == 2:
            raise KeyboardInterrupt
        return draw_scene(seed, index)

    monkeypatch.setattr(shapes, "draw_scene", stop)
    with pytest.raises(KeyboardInterrupt):
        write_shapes(tmp_path / "s", {"train": 5}, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_other_peoples_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=f"{tmp_path}: exists and is not a shapes data set"):
        write_shapes(tmp_path, {"val": 1}, progress=False)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    with pytest.raises(InputError, match="cannot be written"):
        write_shapes(tmp_path / "thesis.txt" / "s", {"val": 1}, progress=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"counts": {"test": 1}}, "no split 'test'; the splits are train, val"),
        ({"counts": {"train": 0}}, "0 images in 'train'"),
        ({"counts": {"train": 1_000_001}}, "1000001 images in 'train'"),
        ({"counts": {}}, "at least one split"),
        ({"seed": -1}, "seed from 0 up"),
        ({"sizes": ((96, 32),)}, "sides from 64 pixels"),
        ({"sizes": ()}, "give at least one"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_shapes(tmp_path / "s", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(tmp_path / "s", train=1, val=2, seed=3)
    assert "1 training and 2 validation images" in capsys.readouterr().out
    assert len(list((tmp_path / "s" / "panoptic_val").iterdir())) == 2
