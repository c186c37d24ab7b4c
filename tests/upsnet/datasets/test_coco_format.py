from __future__ import annotations

import json
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.upsnet.pngs import png
from upsnet.categories import Categories
from upsnet.datasets.coco_format import PredictionWriter, add_prediction, id2rgb, read_panoptic_png, rgb2id
from upsnet.errors import InputError
from upsnet.photos import write_png
from upsnet.result import PanopticResult, Segment

TABLE = Categories.from_coco([{"id": 7, "name": "cat", "isthing": 1}, {"id": 90, "name": "sky", "isthing": 0}])
IDS = np.array([[1, 1, 0], [2, 2, 2]], np.int32)
RESULT = PanopticResult(IDS, [Segment(1, 0, 1.0, 2, (0, 0, 2, 1)), Segment(2, 1, 0.75, 3, (0, 1, 3, 1))])


def test_ids_by_hand() -> None:
    assert id2rgb(np.array([0, 255, 256, 65536, 2**24 - 1])).tolist() == [
        [0, 0, 0],
        [255, 0, 0],
        [0, 1, 0],
        [0, 0, 1],
        [255, 255, 255],
    ]


@given(st.lists(st.integers(0, 2**24 - 1), min_size=1, max_size=20))
def test_ids_round_trip(ids: list[int]) -> None:
    back = rgb2id(id2rgb(np.array([ids])))
    assert back.dtype == np.int32 and back.tolist() == [ids]


@pytest.mark.parametrize("bad", [-1, 2**24])
def test_ids_outside_24_bits_are_refused(bad: int) -> None:
    with pytest.raises(InputError, match=str(bad)):
        id2rgb(np.array([[0, bad]]))


def test_read_panoptic_png_ignores_alpha(tmp_path: Path) -> None:
    ids = np.array([[5, 70_000]], np.int32)
    write_png(tmp_path / "rgb.png", id2rgb(ids))
    rgba = np.concatenate([id2rgb(ids), np.array([[[0], [9]]], np.uint8)], -1)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    for name in ("rgb.png", "rgba.png"):
        assert read_panoptic_png(tmp_path / name).tolist() == ids.tolist()


def test_hand_made_png_is_one(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png(2, 1, 8, 2, zlib.compress(b"\0" + bytes([1, 1, 0, 0, 0, 2]))))
    assert read_panoptic_png(tmp_path / "x.png").tolist() == [[257, 131072]]


def test_other_kinds_of_png_are_refused(tmp_path: Path) -> None:
    Image.new("L", (3, 3)).save(tmp_path / "L.png")
    Image.new("LA", (3, 3)).save(tmp_path / "LA.png")
    Image.new("P", (3, 3)).save(tmp_path / "P.png")
    Image.new("I;16", (3, 3)).save(tmp_path / "I16.png")
    (tmp_path / "RGB16.png").write_bytes(png(1, 1, 16, 2, zlib.compress(bytes(7))))
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(InputError, match=f"{path.name}: a PNG of mode .* is 8-bit RGB"):
            read_panoptic_png(path)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    write_png(tmp_path / "whole.png", np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    (tmp_path / "empty.png").write_bytes(b"")
    Image.new("RGB", (3, 3)).save(tmp_path / "jpeg.png", "JPEG")
    for name in ("cut.png", "empty.png", "jpeg.png"):
        with pytest.raises(InputError, match=f"{name}: not a readable PNG") as caught:
            read_panoptic_png(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"none\.png: no such file"):
        read_panoptic_png(tmp_path / "none.png")


def test_writer_round_trip(tmp_path: Path) -> None:
    with PredictionWriter(tmp_path, TABLE) as writer:
        writer.add(42, "000042.jpg", RESULT)
        writer.add(3, "sub/3.png", PanopticResult(np.zeros((4, 5), np.int32), []))
        assert len(list(tmp_path.glob(".partial-*/predictions/**/*.png"))) == 2  # streamed
        assert not (tmp_path / "predictions").exists() and not (tmp_path / "predictions.json").exists()
    document = json.loads((tmp_path / "predictions.json").read_text())
    assert document["categories"] == TABLE.to_coco()
    first, second = document["annotations"]
    assert (first["image_id"], first["file_name"]) == (42, "000042.png")
    assert first["segments_info"] == [
        {"id": 1, "category_id": 90, "area": 2, "bbox": [0, 0, 2, 1], "score": 1.0, "iscrowd": 0},
        {"id": 2, "category_id": 7, "area": 3, "bbox": [0, 1, 3, 1], "score": 0.75, "iscrowd": 0},
    ]
    assert second == {"image_id": 3, "file_name": "sub/3.png", "segments_info": []}
    assert np.array_equal(read_panoptic_png(tmp_path / "predictions" / "000042.png"), IDS)
    assert read_panoptic_png(tmp_path / "predictions" / "sub" / "3.png").shape == (4, 5)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_writer_keeps_any_map(tmp_path_factory: pytest.TempPathFactory, height: int, width: int, seed: int) -> None:
    folder = tmp_path_factory.mktemp("w")
    ids = np.random.default_rng(seed).integers(0, 2**24, (height, width), dtype=np.int32)
    with PredictionWriter(folder, TABLE) as writer:
        writer.add(1, "x.png", PanopticResult(ids, []))
    assert np.array_equal(read_panoptic_png(folder / "predictions" / "x.png"), ids)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_the_folder_as_it_was(tmp_path: Path, error: type[BaseException]) -> None:
    with PredictionWriter(tmp_path, TABLE) as writer:
        writer.add(1, "a.jpg", RESULT)
    with pytest.raises(error), PredictionWriter(tmp_path, TABLE) as writer:
        writer.add(2, "b.jpg", RESULT)
        raise error
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["predictions.json", "predictions/a.png"]
    content = json.loads((tmp_path / "predictions.json").read_text())
    assert [entry["image_id"] for entry in content["annotations"]] == [1]


@pytest.mark.parametrize(
    ("image_id", "file_name", "message"),
    [
        (1, "other.jpg", "image id was already written"),
        (2, "a.png", r"a\.png was already written"),
        (2, "../a.jpg", "not a file name inside"),
        (2, "/a.jpg", "not a file name inside"),
        (2, "", "not a file name inside"),
    ],
)
def test_writer_refuses(tmp_path: Path, image_id: int, file_name: str, message: str) -> None:
    with pytest.raises(InputError, match=f"image {image_id}.*{message}"), PredictionWriter(tmp_path, TABLE) as writer:
        writer.add(1, "a.jpg", RESULT)
        writer.add(image_id, file_name, RESULT)
    assert not (tmp_path / "predictions.json").exists()


def test_writer_needs_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"), PredictionWriter(tmp_path / "file", TABLE):
        pass


def test_empty_and_unsorted_ids(tmp_path: Path) -> None:
    with PredictionWriter(tmp_path / "none", TABLE):
        pass
    assert json.loads((tmp_path / "none" / "predictions.json").read_text())["annotations"] == []
    with PredictionWriter(tmp_path, TABLE) as writer:
        for image_id in (3, 1, 2, -5, 10**12):
            writer.add(image_id, f"{image_id}.jpg", RESULT)
        for image_id in (3, 1, 2, -5, 10**12):
            with pytest.raises(InputError, match="already written"):
                writer.add(image_id, "other.jpg", RESULT)
    content = json.loads((tmp_path / "predictions.json").read_text())
    assert [entry["image_id"] for entry in content["annotations"]] == [3, 1, 2, -5, 10**12]


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    with PredictionWriter(tmp_path, TABLE) as writer:
        writer.add(1, "1.jpg", RESULT)
        tracemalloc.start()
        for image_id in range(2, 402):
            writer.add(image_id, f"{image_id}.jpg", RESULT)
        grown, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert grown < 400 * 100  # an annotation of two segments takes over 1000 bytes
    assert len(json.loads((tmp_path / "predictions.json").read_text())["annotations"]) == 400 + 1


def test_adding_to_a_folder(tmp_path: Path) -> None:
    add_prediction(tmp_path, "a.jpg", RESULT, TABLE)
    add_prediction(tmp_path, "sub/b.png", PanopticResult(np.zeros((4, 5), np.int32), []), TABLE)
    add_prediction(tmp_path, "a.png", PanopticResult(IDS * 0, []), TABLE)
    content = json.loads((tmp_path / "predictions.json").read_text())
    assert content["categories"] == TABLE.to_coco()
    entries = [(each["image_id"], each["file_name"], each["segments_info"]) for each in content["annotations"]]
    assert sorted(entries) == [(1, "a.png", []), (2, "sub/b.png", [])]
    assert read_panoptic_png(tmp_path / "predictions" / "a.png").tolist() == (IDS * 0).tolist()
    other = Categories.from_coco([{"id": 7, "name": "dog", "isthing": 1}])
    with pytest.raises(InputError, match=r"predictions\.json: holds no predictions of these categories"):
        add_prediction(tmp_path, "c.jpg", RESULT, other)
    assert not (tmp_path / "predictions" / "c.png").exists()


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        (None, "no list 'annotations'"),
        ([7], r"annotations\[0\] has no file_name"),
        ([{"image_id": 1}], r"annotations\[0\] has no file_name"),
        ([{"file_name": "a.png"}], r"annotations\[0\]: key 'image_id' is missing"),
        ([{"file_name": "a.png", "image_id": "1"}], r"annotations\[0\]: 'image_id' is '1', not an integer"),
    ],
)
def test_adding_to_predictions_that_are_none(tmp_path: Path, annotations: Any, message: str) -> None:
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps({"annotations": annotations, "categories": TABLE.to_coco()}))
    before = path.read_text()
    with pytest.raises(InputError, match=rf"predictions\.json: {message}"):
        add_prediction(tmp_path, "b.jpg", RESULT, TABLE)
    assert path.read_text() == before and not (tmp_path / "predictions").exists()
