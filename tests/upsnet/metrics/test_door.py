"""The public door: what `upsnet.metrics` offers, what it needs, and the examples of docs/metrics.md."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.upsnet.metrics.official import official_ap, write_side
from upsnet import hotcoco_package, metrics
from upsnet.errors import InputError

SIZE = (60, 80)
Info = dict[str, Any]


def test_importing_it_loads_nothing_heavy(project_root: Path) -> None:
    code = (
        "import sys, upsnet.metrics as m; print(sorted({'numpy', 'hotcoco', 'torch', 'tqdm'} & set(sys.modules)));"
        "m.PQStat, m.pq_of_files, m.MeanIoU, m.AveragePrecision, m.ap_of_files;"
        "print(sorted({'hotcoco', 'torch', 'pycocotools', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=project_root, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]


def test_every_name_is_there() -> None:
    for name in metrics.__all__:
        assert getattr(metrics, name).__doc__ and name in dir(metrics)
    with pytest.raises(AttributeError, match="no attribute 'fid'"):
        metrics.fid  # noqa: B018


def test_without_hotcoco(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hotcoco_package, "is_installed", lambda: False)
    cure = r"needs the package hotcoco: pip install 'upsnet-trt\[metrics\]'"
    for call in (
        lambda: metrics.make_objects([1], SIZE, boxes=np.ones((1, 4))),
        lambda: metrics.ap_of_files(tmp_path / "a.json", tmp_path / "b.json"),
        lambda: metrics.miou_of_files(tmp_path, tmp_path, 3),
        lambda: metrics.AveragePrecision().results([{"id": 1, "isthing": 1}]),
    ):
        with pytest.raises(InputError, match=cure):
            call()
    write_panoptic(tmp_path)
    assert metrics.pq_of_files(tmp_path / "val.json", tmp_path / "predictions.json")["results"]["All"]["pq"] == 1


# The examples of the page


def write_panoptic(folder: Path) -> None:
    categories = [{"id": 1, "name": "person", "isthing": 1}, {"id": 187, "name": "sky", "isthing": 0}]
    for name in ("val", "predictions"):
        document = {"annotations": write_side(folder / name, {5: "5.png"}), "categories": categories}
        (folder / f"{name}.json").write_text(json.dumps(document))


def test_the_examples_of_the_page_run(tmp_path: Path, project_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hotcoco", reason="needs hotcoco: pip install 'upsnet-trt[metrics]'")
    monkeypatch.chdir(tmp_path)
    write_panoptic(tmp_path)
    truth, found = random_detections(np.random.default_rng(0), images=3, masks=True)
    Path("instances.json").write_text(json.dumps(truth))
    Path("detections.json").write_text(json.dumps(found))
    for name in ("labels", "predicted_labels"):
        Path(name).mkdir()
        Image.fromarray(np.array([[0, 1, 2]], np.uint8)).save(f"{name}/a.png")
    blocks = re.findall(r"```python\n(.*?)```", (project_root / "docs/metrics.md").read_text(), re.DOTALL)
    assert len(blocks) >= 6
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/metrics.md", "exec"), names)


# AP against pycocotools


def random_detections(rng: np.random.Generator, images: int, masks: bool) -> tuple[dict[str, Any], list[Info]]:
    """An instances JSON and a results file that finds most of it, somewhat beside; masks are rectangles."""
    height, width = SIZE
    annotations, results = list[Info](), list[Info]()
    for image_id in range(1, images + 1):
        for _ in range(rng.integers(0, 7)):
            x, y = rng.integers(0, width - 20), rng.integers(0, height - 20)
            box = [int(value) for value in (x, y, *rng.integers(3, 20, 2))]
            entry: Info = {"image_id": image_id, "category_id": int(rng.choice([3, 7]))}
            crowd, area = int(rng.random() < 0.2), box[2] * box[3]
            annotations.append({**entry, "id": len(annotations) + 1, "bbox": box, "area": area, "iscrowd": crowd})
            moved = np.clip(np.add(box, rng.integers(-2, 3, 4)), [0, 0, 1, 1], [width - 1, height - 1, width, height])
            moved[2:] = np.minimum(moved[2:], (width, height) - moved[:2])
            if rng.random() < 0.9:
                results.append({**entry, "bbox": moved.tolist(), "score": round(rng.random(), 1)})
    if masks:
        for each in (*annotations, *results):
            each["segmentation"] = rectangle(each["bbox"])
    truth = {
        "images": [{"id": id, "height": height, "width": width} for id in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "dog"}, {"id": 7, "name": "cat"}],
    }
    return truth, results


def fill(box: list[int]) -> np.ndarray:
    x, y, w, h = box
    mask = np.zeros(SIZE, bool)
    mask[y : y + h, x : x + w] = True
    return mask


def rectangle(box: list[int]) -> dict[str, Any]:
    from pycocotools import mask as rle

    coded = rle.encode(np.asfortranarray(fill(box).view(np.uint8)))
    return {"size": list(SIZE), "counts": coded["counts"].decode()}


@pytest.fixture
def hotcoco() -> None:
    pytest.importorskip("hotcoco", reason="needs hotcoco: pip install 'upsnet-trt[metrics]'")


@pytest.mark.parametrize("seed", range(4))
def test_ap_is_that_of_pycocotools_to_the_bit(hotcoco: None, tmp_path: Path, seed: int) -> None:
    truth, results = random_detections(np.random.default_rng(seed), images=8, masks=True)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(results))
    of_files = metrics.ap_of_files(tmp_path / "truth.json", tmp_path / "results.json")
    stat = metrics.AveragePrecision()
    for image in truth["images"]:
        sides = []
        for entries in (truth["annotations"], results):
            mine = [entry for entry in entries if entry["image_id"] == image["id"]]
            masks = np.array([fill(entry["bbox"]) for entry in mine], bool).reshape(-1, *SIZE)
            crowds, scores = [e.get("iscrowd", 0) for e in mine], [e.get("score", 1) for e in mine]
            sides.append(metrics.make_objects([e["category_id"] for e in mine], SIZE, None, masks, scores, crowds))
        stat.add(image["id"], sides[0], sides[1], SIZE)
    of_arrays = stat.results([{"id": id, "isthing": 1} for id in (3, 7)])
    for name, kind in (("box", "bbox"), ("mask", "segm")):
        wanted = official_ap(truth, results, kind)
        for report in (of_files, of_arrays):
            assert [-1 if value is None else value for value in list(report[name].values())[:6]] == wanted
    assert of_files == of_arrays and 0.05 < of_files["box"]["AP"] < 1


@pytest.mark.parametrize(
    ("side", "change", "message"),
    [
        ("results", {"image_id": 99}, r"results\.json: entry 0, of image 99: .*no such image"),
        ("results", {"category_id": 99}, r"results\.json: entry 0, of image \d: .*no category 99"),
        ("results", {"score": float("nan")}, r"results\.json: 0\.score: Input should be a finite number"),
        ("results", {"score": None}, r"results\.json: 0\.score: Input should be a valid number"),
        ("results", {"bbox": [1, 2, float("inf"), 4]}, r"results\.json: 0\.bbox\.2: Input should be a finite"),
        ("results", {"bbox": [1, 2, 3]}, r"results\.json: 0\.bbox: .* at least 4 items"),
        ("results", {"bbox": None}, r"results\.json: entry 0, of image \d: neither bbox nor mask"),
        ("results", {"image_id": "1"}, r"results\.json: 0\.image_id: Input should be a valid integer"),
        ("truth", {"iscrowd": None}, r"truth\.json: annotations\.0\.iscrowd"),
        ("truth", {"area": "big"}, r"truth\.json: annotations\.0\.area"),
        ("truth", {"image_id": 99}, r"truth\.json: entry 0, of image 99: .*no such image"),
    ],
)
def test_ap_refuses(hotcoco: None, tmp_path: Path, side: str, change: dict[str, Any], message: str) -> None:
    truth, results = random_detections(np.random.default_rng(0), images=3, masks=False)
    (results if side == "results" else truth["annotations"])[0].update(change)
    for name, content in (("truth", truth), ("results", results)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        metrics.ap_of_files(tmp_path / "truth.json", tmp_path / "results.json")
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(InputError, match=r"(truth|results)\.json: "):
        metrics.ap_of_files(tmp_path / "truth.json", tmp_path / "results.json")


def test_objects_of_boxes_and_of_masks(hotcoco: None) -> None:
    boxes = np.array([[5, 6, 20, 10], [0, 0, 80, 60]])
    of_boxes = metrics.make_objects([3, 7], SIZE, boxes=boxes)
    of_masks = metrics.make_objects([3, 7], SIZE, masks=np.array([fill(box.tolist()) for box in boxes]))
    assert of_boxes.masks == of_masks.masks and np.array_equal(of_boxes.boxes, of_masks.boxes)
    assert of_masks.areas.tolist() == [200, 4800] and of_masks.scores.tolist() == [1, 1]
    with pytest.raises(InputError, match=r"masks of \(5, 6\) pixels in an image of \(60, 80\)"):
        metrics.make_objects([3], SIZE, masks=np.ones((1, 5, 6), bool))
    with pytest.raises(InputError, match="boxes or masks"):
        metrics.make_objects([3], SIZE)
    with pytest.raises(InputError, match="2 categories, but boxes of 1"):
        metrics.make_objects([3, 3], SIZE, boxes=boxes[:1])
    with pytest.raises(InputError, match="not finite"):
        metrics.make_objects([3], SIZE, boxes=np.array([[1, 2, np.nan, 4]]))


# mIoU


def test_miou_of_folders_is_that_of_arrays(hotcoco: None, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    stat = metrics.MeanIoU(5)
    for name in ("truth", "found"):
        (tmp_path / name).mkdir()
    for index in range(3):
        truth, found = rng.integers(0, 6, (20, 30)), rng.integers(0, 5, (20, 30))
        truth[truth == 5] = 255
        stat.add(truth, found)
        for name, labels in (("truth", truth), ("found", found)):
            Image.fromarray(labels.astype(np.uint8)).save(tmp_path / name / f"{index}.png")
    assert metrics.miou_of_files(tmp_path / "truth", tmp_path / "found", 5) == stat.results()
    (tmp_path / "found/1.png").unlink()
    with pytest.raises(InputError, match=r"1\.png"):
        metrics.miou_of_files(tmp_path / "truth", tmp_path / "found", 5)


@pytest.mark.parametrize(
    ("truth", "found", "message"),
    [
        ([[0, 1]], [[0]], r"the shape \[1, 2\], the prediction \[1, 1\]"),
        ([[0, 5]], [[0, 1]], r"the truth holds categories 0 \.\. 5, but there are 0 \.\. 2"),
        ([[0, 1]], [[0, 255]], r"the prediction holds categories 0 \.\. 255"),
        ([[0, 1]], [[0.0, 1.0]], "the prediction's labels are float64, not integers"),
    ],
)
def test_miou_refuses_and_adds_nothing(truth: list, found: list, message: str) -> None:
    stat = metrics.MeanIoU(3)
    with pytest.raises(InputError, match=message):
        stat.add(np.array(truth), np.array(found))
    assert not stat.confusion.any()
