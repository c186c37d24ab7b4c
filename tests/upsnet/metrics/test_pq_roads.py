"""PQ of files takes two roads, hotcoco's and the rules': figures, warnings and refusals must be the same on both."""

from __future__ import annotations

import copy
import json
import random
import zlib
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.upsnet.metrics.official import IDS, write_side
from tests.upsnet.pngs import png
from upsnet import hotcoco_package
from upsnet.datasets.coco_format import id2rgb
from upsnet.errors import InputError
from upsnet.metrics import pq_files

pytest.importorskip("hotcoco", reason="needs hotcoco: pip install 'upsnet-trt[metrics]'")

CATEGORIES = [{"id": id, "name": str(id), "isthing": id % 2} for id in (1, 2, 3, 900)]
MODES = ("RGB", "RGBA", "L", "P", "LA", "1")


def random_side(rng: np.random.Generator, ids: np.ndarray, truth: bool) -> list[dict[str, Any]]:
    """A faultless list of the map's segments, some of them crowds in the truth."""
    return [
        {
            "id": int(id),
            "category_id": int(rng.choice([1, 2, 3, 900], p=[0.6, 0.2, 0.1, 0.1])),
            **({"iscrowd": int(rng.random() < 0.3), "area": int((ids == id).sum())} if truth else {}),
        }
        for id in rng.permutation(np.unique(ids[ids > 0]))
    ]


def write_data(folder: Path, rng: np.random.Generator, images: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Related maps with void, all ids 24 bits wide; -> the two documents."""
    gt: dict[str, Any] = {"annotations": [], "categories": copy.deepcopy(CATEGORIES)}
    pred: dict[str, Any] = {"annotations": []}
    pool = np.array([0, *rng.choice(2**24 - 1, 6, replace=False) + 1])
    for image_id in range(images):
        height, width = rng.integers(1, 12, 2)
        truth = np.sort(rng.choice(pool, (height, width)), axis=None).reshape(height, width)
        found = np.where(rng.random((height, width)) < rng.choice([0, 0.1, 0.4]), rng.choice(pool, truth.shape), truth)
        for document, name, ids in ((gt, "gt", truth), (pred, "pred", found)):
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(id2rgb(ids)).save(folder / name / f"{image_id}.png")
            document["annotations"].append(
                {
                    "image_id": image_id,
                    "file_name": f"{image_id}.png",
                    "segments_info": random_side(rng, ids, truth=document is gt),
                }
            )
    for guess, annotation in zip(pred["annotations"], gt["annotations"], strict=True):
        category = {info["id"]: info["category_id"] for info in annotation["segments_info"]}
        for info in guess["segments_info"]:
            if rng.random() < 0.8:
                info["category_id"] = category.get(info["id"], 1)
    return gt, pred


def spoil_segments(chance: random.Random, infos: list[Any]) -> None:
    """One fault, often none that matters, in a segments_info."""
    objects = [info for info in infos if isinstance(info, dict) and info]
    if not objects:
        infos.append({"id": chance.choice([0, 5]), "category_id": 1, "iscrowd": 0, "area": 3})
        return
    info = chance.choice(objects)
    fault = chance.randrange(6)
    if fault == 0:
        infos.remove(info)
    elif fault == 1:
        infos.append(info | {"category_id": chance.choice([1, 2, 77])})
    elif fault == 2:
        infos.append(info | {"id": chance.choice([0, 12345, -1, 2**24, 2**70])})
    elif fault == 3:
        info.pop(chance.choice(list(info)))
    elif fault == 4:
        key = chance.choice(list(info))
        info[key] = chance.choice([0, 1, 2, -1, 7, 10**6, 0.5, 3.0, True, None, "1", [1], 12.0])
    else:
        infos[0] = chance.choice([None, 5, "x", []])


def spoil_png(chance: random.Random, path: Path) -> None:
    whole = path.read_bytes()
    fault = chance.randrange(4)
    if fault == 0:
        path.unlink()
    elif fault == 1:
        path.write_bytes(whole[: chance.randrange(len(whole))])
    elif fault == 2:
        place = chance.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << chance.randrange(8)]) + whole[place + 1 :])
    else:
        with Image.open(path) as image:
            image.convert(chance.choice(MODES)).resize((chance.choice([image.width, 1, 3]), image.height)).save(path)


def answer(folder: Path) -> dict[str, Any] | str:
    try:
        return pq_files.evaluate(folder / "gt.json", folder / "pred.json")
    except InputError as error:
        return str(error)


def agree(folder: Path, gt: Any, pred: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any] | str:
    (folder / "gt.json").write_text(json.dumps(gt))
    (folder / "pred.json").write_text(json.dumps(pred))
    fast = answer(folder)
    with monkeypatch.context() as patch:
        patch.setattr(hotcoco_package, "is_installed", lambda: False)
        slow = answer(folder)
    if isinstance(fast, str) or isinstance(slow, str):
        assert fast == slow
        return fast
    assert (fast["warnings"], fast["images"]) == (slow["warnings"], slow["images"])
    for table in ("results", "per_class"):
        assert fast[table].keys() == slow[table].keys()
        for key, figures in fast[table].items():
            for name, value in slow[table][key].items():
                assert figures[name] == (None if value is None else pytest.approx(value, rel=0, abs=1e-9))
    return fast


@given(st.integers(0, 2**32 - 1), st.integers(0, 5))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_roads_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, faults: int) -> None:
    """One to three images of a few pixels, faultless or with faults in JSONs and PNGs."""
    chance, rng, spoilt = random.Random(seed), np.random.default_rng(seed), set()
    gt, pred = write_data(tmp_path, rng, chance.randint(1, 3))
    for _ in range(faults):
        document, name = chance.choice([(gt, "gt"), (pred, "pred")])
        annotation = chance.choice(document["annotations"])
        fault = chance.randrange(8)
        if fault < 5:
            spoil_segments(chance, annotation["segments_info"])
        elif fault == 5:
            path = tmp_path / name / annotation["file_name"]
            if path not in spoilt:
                spoil_png(chance, path)
            spoilt.add(path)
        elif fault == 6:
            document["annotations"].append(copy.deepcopy(annotation))
        else:
            annotation["image_id"] = chance.choice([str(annotation["image_id"]), 1, -1, "a", 2**70])
    agree(tmp_path, gt, pred, monkeypatch)


def is_fast(folder: Path, gt: Any, pred: Any, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Does hotcoco answer, so that the rules are not asked? The roads must agree too."""
    with monkeypatch.context() as patch:
        patch.setattr(pq_files, "_score", score := Mock(side_effect=pq_files._score))
        agree(folder, gt, pred, monkeypatch)
    return score.call_count == 1  # by the slow road alone


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Two images of 10 x 10, each with a person (40 pixels) and sky (60)."""
    gt, pred = (
        {"annotations": write_side(tmp_path / name, {1: "1.png", 2: "2.png"}, 2), "categories": CATEGORIES}
        for name in ("gt", "pred")
    )
    return tmp_path, gt, pred


def test_regular_files_take_the_fast_road(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, gt, pred = data
    assert is_fast(folder, gt, pred, monkeypatch)
    for document in (gt, pred):
        for annotation in document["annotations"]:
            annotation["image_id"] = f"frankfurt_{annotation['image_id']}"
    assert is_fast(folder, gt, pred, monkeypatch), "ids that are texts, as Cityscapes has them"
    pred["annotations"].append(copy.deepcopy(pred["annotations"][0]))
    gt["annotations"].append(copy.deepcopy(gt["annotations"][1]))
    assert is_fast(folder, gt, pred, monkeypatch), "images that come twice"
    gt["annotations"][0]["segments_info"] += [
        {"id": id, "category_id": 3, "iscrowd": 1, "area": 0} for id in (5, 6)
    ]  # an area of 0 is for the rules
    assert not is_fast(folder, gt, pred, monkeypatch)


def test_what_needs_pixels_is_looked_up_on_the_fast_road_too(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, gt, pred = data
    infos = gt["annotations"][1]["segments_info"]
    infos[0]["area"] = 39.0
    assert not is_fast(folder, gt, pred, monkeypatch)
    infos[0].update(area=30), infos[1].update(area=70)
    assert not is_fast(folder, gt, pred, monkeypatch), "an IoU above 1"
    infos[0].update(area=40), infos[1].update(area=59, category_id=3)
    assert is_fast(folder, gt, pred, monkeypatch)
    report = answer(folder)
    assert isinstance(report, dict) and "2 (area 59 in the JSON, 60 pixels in the PNG)" in report["warnings"][0]


def test_sixteen_bits_a_channel_are_refused_though_hotcoco_cuts_them(
    data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, gt, pred = data
    rows = b"".join(b"\0" + (row.astype(">u2") * 256).tobytes() for row in id2rgb(IDS))
    (folder / "pred" / "2.png").write_bytes(png(10, 10, 16, 2, zlib.compress(rows)))
    refusal = agree(folder, gt, pred, monkeypatch)
    assert isinstance(refusal, str) and "image 2 (2.png): prediction" in refusal and "16 bits" in refusal


def test_the_truth_is_compared_in_a_sample_or_in_every_image(data: Any) -> None:
    """200 images, one of them wrong where the sample does not look: the figures are the official ones either way."""
    folder, gt, pred = data
    for document in (gt, pred):
        first = document["annotations"][0]
        document["annotations"] = [{**copy.deepcopy(first), "image_id": image_id} for image_id in range(200)]
    gt["annotations"][7]["segments_info"][0]["area"] = 44
    gt["annotations"][7]["segments_info"][1]["area"] = 56
    gt["annotations"][7]["segments_info"][1]["category_id"] = 3
    gt["annotations"][0]["segments_info"][0]["area"] = 39
    gt["annotations"][0]["segments_info"][0]["category_id"] = 3
    (folder / "gt.json").write_text(json.dumps(gt))
    (folder / "pred.json").write_text(json.dumps(pred))
    sample, every = (
        pq_files.evaluate(folder / "gt.json", folder / "pred.json", check_all=check_all) for check_all in (False, True)
    )
    assert [warning.split(" ")[1] for warning in sample["warnings"]] == ["0"]
    assert [warning.split(" ")[1] for warning in every["warnings"]] == ["0", "7"]
    assert sample["per_class"] == every["per_class"]
    assert sample["per_class"]["1"]["iou"] == pytest.approx(198 + 40 / 44)
