"""The doctor: every fault is found, named and counted, and none hides another."""

from __future__ import annotations

import copy
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.folders import find_folders
from training.data.coco_panoptic import PanopticDataset
from upsnet.command_line.command import make_app
from upsnet.datasets.coco_format import id2rgb
from upsnet.datasets.doctor.check import check_split, main
from upsnet.datasets.doctor.image import size_and_orientation
from upsnet.datasets.findings import KINDS, LISTED, Finding, Tally
from upsnet.datasets.parallel import chunked, map_parallel
from upsnet.datasets.split import Split
from upsnet.errors import InputError
from upsnet.geometry import ResizeRule
from upsnet.photos import write_png

HandMade = Callable[..., dict[str, Path]]
Change = Callable[[dict[str, Any]], Any]


def examine(paths: dict[str, Path], workers: int = 1) -> Tally:
    return check_split(Split(**paths), workers, progress=False).tally


def segment(content: dict[str, Any], index: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = content["annotations"][0]["segments_info"][index]
    return found


def test_a_sound_data_set_has_no_findings(hand_made: HandMade, content: dict[str, Any]) -> None:
    tally = examine(hand_made(content))
    assert tally.counts == {} and (tally.errors, tally.warnings, tally.images) == (0, 0, 1)
    assert {id: tuple(vars(count).values()) for id, count in tally.categories.items()} == {
        9: (1, 0, 1, 4),
        5: (1, 0, 1, 18),
        3: (2, 1, 1, 9),
        70: (1, 0, 1, 14),
    }
    assert tally.void_pixels == 3


def test_coco_and_shapes_are_sound(shared_data: Path, shapes_folder: Path) -> None:
    (coco,) = find_folders(shared_data / "coco_sample")
    assert coco.images == shared_data / "coco_sample/val2017"
    assert check_split(coco, 1, progress=False).tally.counts == {}
    splits = find_folders(shapes_folder)
    assert [split.json_file.name for split in splits] == ["train.json", "val.json"]  # and not shapes.json
    for split, count in zip(splits, (24, 60), strict=True):
        tally = check_split(split, 2, progress=False).tally
        assert tally.errors == 0 and tally.images == count


JSON_FAULTS: list[tuple[str, Change, dict[str, int], str]] = [
    ("no list", lambda c: c.pop("categories"), {"json": 1, "unknown-category": 5}, "no list 'categories'"),
    ("no images", lambda c: c.update(images=[], annotations=[]), {"json": 1, "photo-unlisted": 1, "png-unlisted": 1},
     "lists no images"),
    ("image twice", lambda c: c["images"].append(c["images"][0]), {"image-twice": 1},
     r"image 42 is listed twice: images\[1\]"),
    ("annotated twice", lambda c: c["annotations"].append(c["annotations"][0]), {"annotation-twice": 1}, "image 42"),
    ("not annotated", lambda c: c["images"].append({"id": 1, "file_name": "b.png", "height": 6, "width": 8}),
     {"not-annotated": 1}, r"image 1 \(b\.png\)"),
    ("not listed", lambda c: c["annotations"].append({"image_id": 5, "file_name": "b.png", "segments_info": []}),
     {"not-listed": 1}, "image 5"),
    ("image id", lambda c: c["images"].append({"id": "x", "file_name": "b.png"}), {"json": 1},
     "'id' is 'x', not an int"),
    ("no object", lambda c: c["annotations"].append(None), {"json": 1}, "annotations.1. is not an object: None"),
    ("climbing", lambda c: c["images"].append({"id": 1, "file_name": "../b.png"}), {"json": 1}, "not inside the fol"),
    ("nameless", lambda c: c["images"].append({"id": 1, "file_name": 7}), {"json": 1}, "'file_name' is 7, not a text"),
    ("no segments", lambda c: c["annotations"][0].pop("segments_info"),
     {"json": 1, "not-annotated": 1, "png-unlisted": 1}, "image 42: key 'segments_info' is missing"),
    ("no photo", lambda c: c["images"][0].update(file_name="b.jpg"), {"photo-missing": 1, "photo-unlisted": 1},
     "image 42: its photo .*b.jpg is missing"),
    ("no png", lambda c: c["annotations"][0].update(file_name="b.png"), {"png-missing": 1, "png-unlisted": 1},
     "image 42: its PNG .*b.png is missing"),
    ("category id", lambda c: c["categories"].append(c["categories"][0]), {"category": 1}, "category 3 'cat': its id"),
    ("category keys", lambda c: c["categories"].append({"id": 4, "name": "x"}), {"category": 1}, "'isthing' is mis"),
    ("isthing", lambda c: c["categories"].append({"id": 4, "name": "x", "isthing": 2}), {"category": 1}, "isthing"),
    ("isthing word", lambda c: c["categories"][0].update(isthing="yes"), {"category": 1},
     "'isthing' is 'yes', not 0 or 1"),
    ("name", lambda c: c["categories"][0].update(name="dog"), {"category": 1}, "category 9 'dog': another has"),
    ("bad colour", lambda c: c["categories"].append({"id": 4, "name": "x", "isthing": 1, "color": [300, 0, 0]}),
     {"category": 1}, r"categories\[4\]: color"),
    ("no colour", lambda c: c["categories"][0].pop("color"), {"color": 1}, "category 3 'cat': no colour"),
    ("colours", lambda c: c["categories"][1].update(color=[255, 0, 0]), {"color": 1}, "'dog': the colour of 'cat'"),
    ("all things", lambda c: [e.update(isthing=1) for e in c["categories"]], {"one-sided": 1}, "4 categories are thin"),
    ("too many", lambda c: c["categories"].extend({"id": i, "name": str(i), "isthing": 0, "color": [1, i % 250, i // 9]}
                                                  for i in range(100, 352)), {"category": 1}, "256 categories"),
    ("area", lambda c: segment(c).update(area=5), {"area": 1}, "segment 70000 has area 5; in the PNG 4"),
    ("no area", lambda c: segment(c).pop("area"), {"area": 1}, "segment 70000 has no area; write its pixel count"),
    ("bbox", lambda c: segment(c).update(bbox=[3, 2, 2, 3]), {"bbox": 1}, r"bbox \[3, 2, 2, 3\]; .* \[3, 2, 2, 2\]"),
    ("bbox type", lambda c: segment(c).update(bbox="3222"), {"bbox": 1}, "bbox '3222'"),
    ("no bbox", lambda c: segment(c).update(bbox=[]), {"bbox-missing": 1}, "image 42: segment 70000"),
    ("iscrowd", lambda c: segment(c).update(iscrowd=2), {"iscrowd": 1}, "segment 70000: 'iscrowd' is 2, not 0 or 1"),
    ("no iscrowd", lambda c: segment(c).pop("iscrowd"), {"iscrowd-missing": 1}, "70000 has no iscrowd; 0 is"),
    ("stuff crowd", lambda c: segment(c, 1).update(iscrowd=1), {"stuff-crowd": 1}, "segment 7 of stuff category 5"),
    ("stuff twice", lambda c: segment(c, 4).update(category_id=5), {"stuff-twice": 1}, "segment 8: another of"),
    ("category", lambda c: segment(c).update(category_id=4), {"unknown-category": 1},
     "segment 70000 has the unknown category 4"),
    ("no category", lambda c: segment(c).update(category_id=[]), {"unknown-category": 1},
     r"'category_id' is \[\], not an int"),
    ("segment 0", lambda c: segment(c).update(id=0), {"segment-id": 1, "only-png": 1},
     r"segments_info\[0\] lists id 0"),
    ("large id", lambda c: segment(c).update(id=1 << 24), {"segment-id": 1, "only-png": 1},
     "segment 16777216: no PNG holds this id"),
    ("bool id", lambda c: segment(c).update(id=True), {"segment-id": 1, "only-png": 1}, "'id' is True, not an integer"),
    ("same id", lambda c: segment(c, 1).update(id=70000), {"segment-twice": 1, "only-png": 1}, "segment 70000"),
    ("other id", lambda c: segment(c).update(id=9), {"only-json": 1, "only-png": 1},
     "segment 9 is in the JSON and not in the PNG"),
    ("segment", lambda c: c["annotations"][0]["segments_info"].append(7), {"json": 1}, "not an object: 7"),
    ("height", lambda c: c["images"][0].update(height=7), {"size": 1}, "photo .* 8 x 6, .* 8 x 6, the JSON 8 x 7"),
    ("odd height", lambda c: c["images"][0].update(height=[6]), {"size": 1},
     r"'height' is \[6\], not an integer from 1"),
    ("no height", lambda c: c["images"][0].pop("height"), {"size-missing": 1}, "image 42: no width or no height"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "counts", "message"), [f[1:] for f in JSON_FAULTS], ids=[f[0] for f in JSON_FAULTS])
def test_faults_of_the_json(
    hand_made: HandMade, content: dict[str, Any], change: Change, counts: dict[str, int], message: str
) -> None:
    change(content)
    tally = examine(hand_made(content))
    assert tally.counts == counts
    assert tally.errors == sum(count for kind, count in counts.items() if KINDS[kind].error)
    texts = [text for kind in counts for text in tally.texts[kind]]
    assert any(re.search(message, text) for text in texts) and all("\n" not in text for text in texts)


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    if isinstance(node, dict | list):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from places(child, (*path, key))


@pytest.mark.parametrize("value", [None, -1, "x", [[]], {}, True, 2**70, "\0"], ids=repr)
def test_no_value_anywhere_stops_it(hand_made: HandMade, content: dict[str, Any], value: Any) -> None:
    paths = hand_made(content)
    for *above, key in list(places(content)):
        broken = copy.deepcopy(content)
        node = broken
        for step in above:
            node = node[step]
        node[key] = value
        paths["json_file"].write_text(json.dumps(broken))
        tally = examine(paths)
        assert all(kind in KINDS for kind in tally.counts)
        if tally.errors == 0:  # then training reads it
            rule = ResizeRule(short_side=6, max_side=8)
            assert PanopticDataset(Split(**paths), rule)[0]["size"] == (6, 8)


def test_one_fault_does_not_hide_another(hand_made: HandMade, content: dict[str, Any]) -> None:
    segment(content).update(area=1, bbox=[0, 0, 1, 1], category_id=4, iscrowd=5)
    segment(content, 1).update(id=77)
    content["images"].append({"id": 3, "file_name": "c.png", "height": 6, "width": 8})
    content["annotations"].append({"image_id": 3, "file_name": "d.png", "segments_info": []})
    tally = examine(hand_made(content))
    expected = ["area", "bbox", "unknown-category", "iscrowd", "only-json", "only-png", "photo-missing", "png-missing"]
    assert tally.counts == dict.fromkeys([*expected, "empty"], 1) and tally.images == 2


def jpeg(progressive: bool = False) -> bytes:
    array = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "JPEG", progressive=progressive)
    return stream.getvalue()


@pytest.mark.parametrize("progressive", [False, True])
def test_every_cut_of_a_jpeg_is_found(tmp_path: Path, progressive: bool) -> None:
    whole = jpeg(progressive)
    path = tmp_path / "photo.jpg"
    path.write_bytes(whole)
    assert size_and_orientation(str(path))[0] == (80, 60)
    for length in (0, 1, 100, len(whole) // 3, len(whole) // 2, len(whole) - 300, len(whole) - 20):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"photo\.jpg: not a readable image"):
            size_and_orientation(str(path))[0]


@pytest.mark.parametrize("side", [1, 7, 9])
def test_sizes_of_small_turned_and_grey_photos(tmp_path: Path, side: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("RGB", (side, 20)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("L", (side, 20)).save(tmp_path / "grey.jpg")
    Image.new("CMYK", (side, 20)).save(tmp_path / "four.jpg")
    Image.new("P", (side, 20)).save(tmp_path / "palette.png")
    assert size_and_orientation(str(tmp_path / "turned.jpg"))[0] == (20, side)
    for name in ("grey.jpg", "four.jpg", "palette.png"):
        assert size_and_orientation(str(tmp_path / name))[0] == (side, 20)


def test_damaged_files_and_sizes(hand_made: HandMade, content: dict[str, Any]) -> None:
    paths = hand_made(content, photo=np.zeros((8, 6, 3), np.uint8))
    assert examine(paths).counts == {"size": 1}
    write_png(paths["segments"] / "a.png", np.zeros((6, 8), np.uint8))
    (paths["images"] / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    tally = examine(paths)  # what the PNG should hold is not reported as missing
    assert tally.counts == {"photo-unreadable": 1, "png-unreadable": 1}
    assert "PNG of mode L" in tally.texts["png-unreadable"][0]


def test_names_and_files(hand_made: HandMade, content: dict[str, Any]) -> None:
    content["images"].append(content["images"][0] | {"id": 2, "file_name": "a.jpg"})
    content["annotations"].append(content["annotations"][0] | {"image_id": 2})
    paths = hand_made(content)
    shutil.copy(paths["images"] / "a.png", paths["images"] / "a.jpg")
    (paths["images"] / ".hidden").touch()
    (paths["segments"] / "deep").mkdir()
    (paths["segments"] / "deep" / "z.png").touch()
    tally = examine(paths)
    assert tally.counts == {"file-twice": 4, "png-unlisted": 1}  # a.png and a.jpg: one name without the suffix
    assert tally.texts["png-unlisted"] == [str(paths["segments"] / "deep" / "z.png")]


def test_an_image_without_segments_is_a_warning(hand_made: HandMade, content: dict[str, Any]) -> None:
    content["annotations"][0]["segments_info"] = []
    tally = examine(hand_made(content, np.zeros((6, 8), np.int32)))
    assert tally.counts == {"empty": 1, "nothing-to-learn": 1} and (tally.errors, tally.warnings) == (0, 2)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_json_that_is_none(hand_made: HandMade, content: dict[str, Any], text: str) -> None:
    paths = hand_made(content)
    paths["json_file"].write_text(text, encoding="latin-1")
    assert examine(paths).counts == {"json": 1}


def run(*arguments: object) -> Any:
    return CliRunner(env={"COLUMNS": "160"}).invoke(make_app(main), [str(a) for a in arguments])


def test_command_line(hand_made: HandMade, content: dict[str, Any], tmp_path: Path) -> None:
    paths = hand_made(content)
    folders = ["--gt-folder", paths["segments"], "--images", paths["images"], "--workers", 1]
    sound = run(paths["json_file"], *folders)
    assert sound.exit_code == 0 and "1 images, 3 segments of things, 2 of stuff, 4 of 4 categ" in sound.output
    segment(content).update(area=5)
    segment(content, 1).pop("bbox")
    hand_made(content)
    faulty = run(paths["json_file"], *folders, "--report", tmp_path / "report.json")
    assert faulty.exit_code == 1 and "area missing or not the PNG's" in faulty.output
    report = json.loads((tmp_path / "report.json").read_text())
    (split,) = report["splits"]
    assert not report["clean"] and (split["errors"], split["warnings"], split["images"]) == (1, 1, 1)
    assert split["findings"]["area"]["count"] == 1 and split["findings"]["area"]["level"] == "error"
    assert list(split["findings"]) == ["area", "bbox-missing"]
    sky = next(row for row in split["categories"] if row["id"] == 5)
    assert sky == {"id": 5, "name": "sky", "isthing": 0, "segments": 1, "crowds": 0, "images": 1, "pixels": 18}


def test_bad_use(hand_made: HandMade, content: dict[str, Any], tmp_path: Path) -> None:
    paths = hand_made(content)
    for arguments, message in (
        ([tmp_path / "none"], "none: no such file or folder"),
        ([tmp_path], "no data set in COCO panoptic format"),
        ([tmp_path, "--images", paths["images"]], "go with a JSON, not with a folder"),
        ([paths["json_file"]], "panoptic_set: no such folder"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1
    folders = ["--gt-folder", paths["segments"], "--images", paths["images"]]
    none = run(paths["json_file"], *folders, "--workers", 0)
    assert none.exit_code == 2 and "--workers 0" in none.stderr


def test_processes_give_what_one_gives(shapes_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(shapes_folder, tmp_path / "set")
    for name in ("000000000003.png", "000000000017.png"):
        write_png(tmp_path / "set/panoptic_train" / name, id2rgb(np.full((5, 5), 9)))
    paths = {"json_file": tmp_path / "set/train.json", "segments": tmp_path / "set/panoptic_train"}
    alone, together = (examine({**paths, "images": tmp_path / "set/train"}, workers) for workers in (1, 2))
    assert alone == together and alone.counts["size"] == 2 and alone.counts["only-png"] == 2


def test_tally_counts_all_and_lists_some() -> None:
    whole = Tally()
    for part in range(3):
        tally = Tally()
        tally.report(Finding("area", f"{part}.{i}") for i in range(LISTED // 2 + 1))
        whole.add(tally)
    assert whole.counts["area"] == 3 * (LISTED // 2 + 1) and len(whole.texts["area"]) == LISTED


def test_parallel_keeps_the_order_and_raises() -> None:
    assert list(map_parallel(abs, range(-40, 0), 2)) == list(range(40, 0, -1))
    assert list(map_parallel(abs, [], 2)) == [] and list(chunked(range(5), 2)) == [[0, 1], [2, 3], [4]]
    with pytest.raises(TypeError):
        list(map_parallel(abs, [1, "x", 2], 2))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="worker processes died"):
        list(map_parallel(os._exit, [3], 2))


def make_folder(hand_made: HandMade, content: dict[str, Any], folder: Path) -> None:
    """Two data sets in their usual places: train.json and val.json, the same but for what a test changes."""
    paths = hand_made(content)
    for name in ("train", "val"):
        for source, target in ((paths["segments"], f"panoptic_{name}"), (paths["images"], name)):
            shutil.copytree(source, folder / target)
        shutil.copy(paths["json_file"], folder / f"{name}.json")


def test_a_folder_with_two_tables(hand_made: HandMade, content: dict[str, Any], tmp_path: Path) -> None:
    make_folder(hand_made, content, tmp_path / "two")
    content["categories"][0]["name"] = "another"
    (tmp_path / "two/val.json").write_text(json.dumps(content))
    result = CliRunner().invoke(make_app(main), [str(tmp_path / "two"), "--report", str(tmp_path / "report.json")])
    assert result.exit_code == 0, "a folder may hold data sets that are no pair"
    train, val = json.loads((tmp_path / "report.json").read_text())["splits"]
    assert "other-categories" not in train["findings"]
    (text,) = val["findings"]["other-categories"]["texts"]
    assert "train.json" in text and "'another'" in text


def test_a_folder_without_its_pngs_is_named(hand_made: HandMade, content: dict[str, Any], tmp_path: Path) -> None:
    make_folder(hand_made, content, tmp_path / "two")
    shutil.rmtree(tmp_path / "two/panoptic_train")
    result = CliRunner().invoke(make_app(main), [str(tmp_path / "two")])
    assert result.exit_code == 2 and "panoptic_train: no such folder" in result.output


def test_a_json_of_another_kind_is_named_without_its_folders(tmp_path: Path) -> None:
    (tmp_path / "instances.json").write_text(json.dumps({"annotations": [{"segmentation": [], "bbox": []}]}))
    result = CliRunner().invoke(make_app(main), [str(tmp_path / "instances.json")])
    assert result.exit_code == 2 and "this is an instances JSON" in result.output


def test_nothing_to_learn_from(hand_made: HandMade, content: dict[str, Any]) -> None:
    for info in content["annotations"][0]["segments_info"]:
        info["iscrowd"] = 1
    assert examine(hand_made(content)).counts["nothing-to-learn"] == 1


def test_pipes_and_endless_links_in_the_folders(hand_made: HandMade, content: dict[str, Any]) -> None:
    paths = hand_made(content)
    (png,) = paths["segments"].iterdir()
    (photo,) = paths["images"].iterdir()
    png.unlink()
    os.mkfifo(png)
    photo.unlink()
    photo.symlink_to(photo.name)
    assert {"png-missing", "photo-missing"} <= examine(paths).counts.keys()


@pytest.mark.parametrize("category", [1 << 63, -(1 << 64), 77])
def test_no_number_hides_an_unknown_category(hand_made: HandMade, content: dict[str, Any], category: int) -> None:
    segment(content)["category_id"] = category
    tally = examine(hand_made(content))
    assert tally.counts["unknown-category"] == 1 and str(category) in tally.texts["unknown-category"][0]
