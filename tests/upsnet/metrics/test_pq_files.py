"""PQ of folders and JSON files: the official cases, the script, hostile input.

The rules: test_pq.py; hotcoco held against the rules: test_pq_roads.py.
"""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.figures import near
from tests.shared import shared_names
from tests.upsnet.metrics.official import IDS, PERSON, SKY, write_side
from tests.upsnet.results import result_of
from upsnet.categories import Categories
from upsnet.command_line import command, pq
from upsnet.datasets.coco_format import PredictionWriter, id2rgb
from upsnet.metrics.pq_files import evaluate
from upsnet.photos import write_png

OFFICIAL_NONSENSE = {"gt_id_zero_listed", "size_mismatch_broadcasts"}
OFFICIAL_QUIRKS = {
    "crowd_two_same_category_first",
    "gt_area_wrong_in_json",
    "gt_duplicate_segment_id",
    "gt_json_id_not_in_png",
    "pred_duplicate_image",
}

CAR = 3
Capture = pytest.CaptureFixture[str]
Dataset = tuple[Path, Any, Any]
CATEGORIES = [{"id": PERSON, "isthing": 1}, {"id": CAR, "isthing": 1}, {"id": SKY, "isthing": 0}]


def main(arguments: list[str]) -> int:
    """`upsnet pq` -> exit code."""
    with pytest.raises(SystemExit) as stop:
        command.run(pq.main, arguments)
    assert isinstance(stop.value.code, int)
    return stop.value.code


# The official cases


@pytest.mark.parametrize("name", shared_names("pq_cases"))
def test_official_case(shared_data: Path, tmp_path: Path, capsys: Capture, name: str) -> None:
    case = shared_data / "pq_cases" / name
    expected = json.loads((case / "expected.json").read_text())
    out = tmp_path / "out.json"
    code = main(["--gt-json", f"{case}/gt.json", "--pred-json", f"{case}/pred.json", "--json", str(out)])
    stderr = capsys.readouterr().err.splitlines()
    if expected["status"] == "error" or name in OFFICIAL_NONSENSE:
        assert code == 2 and len(stderr) == 1 and stderr[0].startswith("error: image 1")
        assert not out.exists()
        return
    assert code == 0
    report = json.loads(out.read_text())
    for group, figures in expected["results"].items():
        near(report["results"][group], figures or {"pq": None, "sq": None, "rq": None, "n": 0})
    if expected["per_class"] is not None:
        near(report["per_class"], expected["per_class"])
    assert report["images"] == expected["images"]
    assert all(line.startswith("warning: image ") for line in stderr)
    assert [line.removeprefix("warning: ") for line in stderr] == report["warnings"]
    assert bool(stderr) >= (name in OFFICIAL_QUIRKS)


def test_cases_are_all_there(shared_data: Path) -> None:
    assert len(list((shared_data / "pq_cases").glob("*/expected.json"))) >= 41


# Files


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Ground truth and predictions of two images on disk, as documents that a test may spoil before `run`."""
    gt, pred = (write_side(tmp_path / name, {i: f"{i:012}.png" for i in (1, 2)}) for name in ("gt", "pred"))
    return tmp_path, {"categories": copy.deepcopy(CATEGORIES), "annotations": gt}, {"annotations": pred}


def run(dataset: Dataset, *more: str) -> int:
    folder, gt, pred = dataset
    (folder / "gt.json").write_text(gt if isinstance(gt, str) else json.dumps(gt))
    (folder / "pred.json").write_text(pred if isinstance(pred, str) else json.dumps(pred))
    out = ["--json", str(folder / "out.json")]
    return main(["--gt-json", str(folder / "gt.json"), "--pred-json", str(folder / "pred.json"), *out, *more])


def refused(dataset: Dataset, capsys: Capture, *more: str) -> str:
    """Run, expect exit code 2 without output, and return the one line on stderr."""
    assert run(dataset, *more) == 2
    captured = capsys.readouterr()
    assert not (dataset[0] / "out.json").exists() and not captured.out
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err


def test_script_from_another_folder(dataset: Dataset, tmp_path: Path, project_root: Path) -> None:
    assert run(dataset) == 0
    command = [sys.executable, str(project_root / "eval" / "pq.py"), "--workers", "2"]
    command += ["--gt-json", "gt.json", "--gt-folder", "gt", "--pred-json", "pred.json", "--pred-folder", "pred"]
    environment = {**os.environ, "PYTHONPATH": str(project_root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--json", "two.json"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "100.0" in done.stdout
    assert (tmp_path / "two.json").read_text() == (tmp_path / "out.json").read_text()
    (tmp_path / "pred" / "000000000002.png").unlink()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "error: image 2" in done.stderr


def test_the_table_of_classes(dataset: Dataset, capsys: Capture) -> None:
    dataset[1]["categories"][0]["name"] = "person"
    dataset[2]["annotations"][0]["segments_info"][1]["category_id"] = CAR
    assert run(dataset, "--per-class", "--check-all") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[5:]]
    assert lines[0] == ["PQ", "SQ", "RQ", "TP", "FP", "FN", "category"]
    assert lines[1] == ["100.0", "100.0", "100.0", "2", "0", "0", "person"]
    assert lines[2] == ["0.0", "0.0", "0.0", "0", "1", "0", "3"]
    assert lines[3] == ["66.7", "100.0", "66.7", "1", "0", "1", "187"] and len(lines) == 4


def test_order_of_the_predictions_does_not_matter(dataset: Dataset) -> None:
    folder, _, pred = dataset
    pred["annotations"][1]["segments_info"][0]["category_id"] = CAR
    assert run(dataset) == 0
    first = (folder / "out.json").read_text()
    pred["annotations"].reverse()
    assert run(dataset) == 0 and (folder / "out.json").read_text() == first


def test_of_two_predictions_for_one_image_the_last_counts(dataset: Dataset, capsys: Capture) -> None:
    wrong = copy.deepcopy(dataset[2]["annotations"][1])
    wrong["segments_info"][0]["category_id"] = CAR
    dataset[2]["annotations"].insert(0, wrong)
    assert run(dataset) == 0
    assert "warning: image 2: predicted more than once" in capsys.readouterr().err
    assert json.loads((dataset[0] / "out.json").read_text())["results"]["All"]["pq"] == 1


def test_numbers_and_texts_of_other_makers(dataset: Dataset, capsys: Capture) -> None:
    """Floats and a mark at the start are the same figures; backslashes are named."""
    assert run(dataset) == 0
    plain = (dataset[0] / "out.json").read_text()
    folder, gt, pred = dataset
    for annotation in gt["annotations"]:
        annotation["image_id"] = float(annotation["image_id"])
        for info in annotation["segments_info"]:
            info.update({key: float(info[key]) for key in ("id", "category_id", "iscrowd", "area")})
    assert run((folder, "\ufeff" + json.dumps(gt), pred)) == 0
    assert (folder / "out.json").read_text() == plain
    (folder / "out.json").unlink()
    capsys.readouterr()
    pred["annotations"][1]["file_name"] = "deep\\000000000002.png"
    assert "'" + str(folder / "pred/deep/000000000002.png") + "' is what other systems" in refused(dataset, capsys)


def test_strings_are_fine_as_ids_on_both_sides(dataset: Dataset) -> None:
    for document in dataset[1:]:
        for annotation in document["annotations"]:
            annotation["image_id"] = f"frankfurt_{annotation['image_id']}"
    assert run(dataset) == 0


def test_extra_predictions_are_ignored_with_a_warning(dataset: Dataset, capsys: Capture) -> None:
    dataset[1]["annotations"].pop()
    assert run(dataset) == 0
    assert "warning: image 2: predicted, but not in the ground truth" in capsys.readouterr().err


def test_unknown_ground_truth_category_is_left_out_with_a_warning(dataset: Dataset, capsys: Capture) -> None:
    dataset[1]["annotations"][0]["segments_info"][0]["category_id"] = 77
    assert run(dataset) == 0
    assert (
        "image 1 (000000000001.png): ground truth: segment 1 has the unknown category_id 77" in capsys.readouterr().err
    )
    report = json.loads((dataset[0] / "out.json").read_text())
    assert report["per_class"].keys() == {"1", "3", "187"} and report["per_class"]["1"]["fp"] == 1


def test_many_warnings_are_cut_on_stderr_but_not_in_the_json(dataset: Dataset, capsys: Capture) -> None:
    dataset[2]["annotations"] *= 50
    assert run(dataset) == 0
    assert len(capsys.readouterr().err.splitlines()) == 51
    assert len(json.loads((dataset[0] / "out.json").read_text())["warnings"]) == 98


@pytest.mark.parametrize(
    ("side", "path", "value", "message"),
    [
        (2, ("annotations", 1), None, r"pred\.json: annotations\[1\]: expected an object"),
        (2, ("annotations", 1, "image_id"), None, r"pred\.json: annotations\[1\]: 'image_id'"),
        (2, ("annotations", 1, "image_id"), "2", "image 2: no prediction in .* another type"),
        (2, ("annotations", 1, "image_id"), 3, "image 2: no prediction"),
        (2, ("annotations", 1, "image_id"), [2], "image_id"),
        (2, ("annotations", 1, "image_id"), True, r"annotations\[1\]: 'image_id' is True, not an integer or a text"),
        (1, ("annotations", 0, "segments_info", 0, "iscrowd"), "0", "'iscrowd' is '0', not 0 or 1: it is text; write"),
        (1, ("annotations", 0, "segments_info", 0, "id"), 1 << 24, "segment 16777216: no PNG holds this id"),
        (1, ("categories", 0, "isthing"), "1", r"categories\[0\]: 'isthing' is '1', not 0 or 1"),
        (2, ("annotations", 1, "file_name"), 7, "image 2: 'file_name'"),
        (2, ("annotations", 1, "file_name"), "none.png", r"image 2 .*prediction: .*none\.png: no such file"),
        (2, ("annotations", 1, "file_name"), "", "image 2 .*no such file"),
        (2, ("annotations", 1, "segments_info"), None, "image 2: 'segments_info'"),
        (2, ("annotations", 1, "segments_info", 0), 5, r"image 2 .*segments_info\[0\] is not an object"),
        (2, ("annotations", 1, "segments_info", 0, "category_id"), 77, "image 2 .*segment 1 .*category_id 77"),
        (2, ("annotations", 1, "segments_info", 0, "category_id"), "1", "image 2 .*not an integer"),
        (2, ("annotations", 1, "segments_info", 0, "id"), 8, "image 2 .*ids 1 that its JSON lacks"),
        (2, ("annotations",), {}, r"pred\.json: key 'annotations'"),
        (1, ("annotations",), None, r"gt\.json: key 'annotations'"),
        (1, ("annotations", 0, "image_id"), 9, "image 9: no prediction"),
        (1, ("annotations", 0, "file_name"), "none.png", "image 1 .*ground truth: .*no such file"),
        (1, ("annotations", 0, "segments_info", 0, "iscrowd"), None, "image 1 .*'iscrowd' is None"),
        (1, ("annotations", 0, "segments_info", 0, "area"), 7, "image 1 .*IoU above 1"),
        (1, ("categories",), 5, r"gt\.json: categories"),
        (1, ("categories", 0), {"id": 1}, r"gt\.json: categories\[0\]"),
        (1, ("categories", 0, "id"), None, r"gt\.json: categories\[0\]"),
        (1, ("categories",), [], "unknown category_id"),
    ],
)
def test_hostile_documents(dataset: Dataset, capsys: Capture, side: Any, path: Any, value: Any, message: str) -> None:
    place: Any = dataset[side]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert re.search(message, refused(dataset, capsys))


def test_categories_missing_and_no_json_at_all(dataset: Dataset, capsys: Capture) -> None:
    folder, gt, pred = dataset
    assert "gt.json: key 'categories'" in refused((folder, {"annotations": []}, pred), capsys)
    assert "pred.json: expected an object" in refused((folder, gt, []), capsys)
    assert "pred.json: not valid JSON" in refused((folder, gt, '{"annotations": [\n{'), capsys)
    assert "workers" in refused(dataset, capsys, "--workers", "0")
    assert "none.json: cannot be read" in refused(dataset, capsys, "--pred-json", "none.json")
    assert "cannot be written" in refused(dataset, capsys, "--json", str(folder / "gt.json" / "x.json"))


def test_hostile_pngs(dataset: Dataset, capsys: Capture) -> None:
    folder = dataset[0]
    path = folder / "pred" / "000000000002.png"
    whole = path.read_bytes()
    for content in (b"", whole[:40], whole[: len(whole) // 2], b"GIF89a"):
        path.write_bytes(content)
        assert "image 2 (000000000002.png): prediction: " in refused(dataset, capsys)
    for image in (Image.new("L", (10, 10)), Image.new("P", (10, 10)), Image.new("I;16", (10, 10))):
        image.save(path)
        assert "image 2 (000000000002.png): prediction: " in refused(dataset, capsys)
    for shape in ((1, 10), (10, 1), (1, 1), (20, 5), (10, 11)):
        write_png(path, id2rgb(np.full(shape, 1)))
        assert f"the prediction is {shape[0]} x {shape[1]} pixels" in refused(dataset, capsys)
    path.write_bytes(whole)
    with Image.open(path) as image:
        image.convert("RGBA").save(path)
    assert run(dataset) == 0


def test_what_the_writer_writes_scores(tmp_path: Path) -> None:
    entries = [{"id": 1, "name": "person", "isthing": 1}, {"id": 187, "name": "sky", "isthing": 0}]
    with PredictionWriter(tmp_path, Categories.from_coco(entries)) as writer:
        writer.add(5, "5.jpg", result_of(IDS, {1: 1, 2: 0}))
    report = evaluate(tmp_path / "predictions.json", tmp_path / "predictions.json")
    assert report["results"]["All"] == {"pq": 1.0, "sq": 1.0, "rq": 1.0, "n": 2} and not report["warnings"]
