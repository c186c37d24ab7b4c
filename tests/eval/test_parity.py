from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from eval import parity as parity_module
from eval.parity import order, run_parity
from eval.parity_report import Limits, Parity
from tests.folders import local
from upsnet.command_line.command import make_app
from upsnet.datasets.folder import PanopticFolder
from upsnet.errors import InputError
from upsnet.files import write_json
from upsnet.geometry import ResizeRule
from upsnet.photos import read_photo, write_png
from upsnet.runtimes.options import RuntimeOptions

Fake = Callable[..., Any]


@pytest.fixture
def dataset(gt_json: Path) -> PanopticFolder:
    return PanopticFolder(gt_json)


def test_equal_predictors(dataset: PanopticFolder, fake: Fake, tmp_path: Path) -> None:
    predictors = [fake("pytorch"), fake("onnxruntime"), fake("triton")]
    parity = run_parity(predictors, dataset, tmp_path / "out")
    assert parity.equal and not parity.reasons and parity.worst_classes == []
    assert [(row.runtime, row.batch) for row in parity.columns] == [
        (name, batch) for batch in (1, 4) for name in ("pytorch", "onnxruntime", "triton")
    ]
    assert all(row.identical == 1.0 and row.difference["All"] == 0 for row in parity.columns)
    assert predictors[0].batches == [1, 1, 1, 1, 4, 1, 1]  # groups of four images, the fifth alone
    assert Parity.load(tmp_path / "out/parity.json") == parity
    # One dog of five is grass in the truth: tp 4, fp 1.
    dog = next(row for row in parity.per_class if row.name == "dog")
    assert (dog.pq, dog.segments) == (4 / 4.5, 4)
    assert parity.columns[0].results["Things"].pq == pytest.approx((4 / 4.5 + 1) / 2)
    assert parity.lowest_classes[0] == "dog"


def test_other_numbering_and_scores_are_still_identical(dataset: PanopticFolder, fake: Fake, tmp_path: Path) -> None:
    parity = run_parity([fake("pytorch"), fake("triton", permute=True)], dataset, tmp_path)
    assert parity.equal and parity.columns[1].identical == 1.0


def test_of_eight_bits_the_reasons_name_the_limits_that_they_keep(
    dataset: PanopticFolder, fake: Fake, tmp_path: Path
) -> None:
    damaged = fake("onnxruntime", damage=((48, 60), 0.125))
    damaged.manifest = damaged.manifest.model_copy(update={"precision": "int8"})
    parity = run_parity([fake("pytorch"), damaged], dataset, tmp_path, batch_sizes=[1])
    flags = "--max-pq-difference 0.005 --min-identical 0.98"
    assert parity.reasons and all("ONNX Runtime int8, batch 1" in reason for reason in parity.reasons)
    assert all(flags in reason for reason in parity.reasons)
    chosen = Limits(max_pq_difference=0.005, min_identical=0.999)
    parity = run_parity([fake("pytorch"), damaged], dataset, tmp_path, batch_sizes=[1], limits=chosen)
    assert parity.reasons and not any(flags in reason for reason in parity.reasons)


def test_names_the_image_and_the_class_that_differ(dataset: PanopticFolder, fake: Fake, tmp_path: Path) -> None:
    damaged = fake("onnxruntime", damage=((48, 60), 0.125))  # image 13: 6 rows of sky become void
    parity = run_parity([fake("pytorch"), damaged], dataset, tmp_path)
    assert not parity.equal
    assert parity.worst_images[0].image_id == 13
    assert parity.worst_images[0].identical == pytest.approx(1 - 0.125)
    assert parity.worst_images[1].identical == 1
    assert parity.worst_classes == ["sky"]
    pixels = 48 * 64 + 48 * 48 + 64 * 48 + 48 * 60 + 50 * 48
    assert parity.columns[1].identical == pytest.approx(1 - 6 * 60 / pixels)
    assert any("ONNX Runtime, batch 1: PQ (stuff) differs by -" in reason for reason in parity.reasons)
    assert any("of the pixels identical, needed 99.9 %" in reason for reason in parity.reasons)
    assert parity.per_class[0].name == "sky"
    assert run_parity([fake("pytorch")], dataset, tmp_path, limits=Limits(min_pq=0.5)).equal
    demanding = run_parity([fake("pytorch")], dataset, tmp_path, limits=Limits(min_pq=0.999))
    assert "needed 99.9" in demanding.reasons[0]
    wide = Limits(max_pq_difference=0.2, min_identical=0.9)
    assert run_parity([fake("pytorch"), damaged], dataset, tmp_path, limits=wide).equal
    narrow = replace(wide, min_identical=0.99)
    assert not run_parity([fake("pytorch"), damaged], dataset, tmp_path, limits=narrow).equal


def test_a_truth_of_void_alone_has_no_pq(gt_json: Path, fake: Fake, tmp_path: Path) -> None:
    content = json.loads(gt_json.read_text())
    for annotation in content["annotations"]:
        annotation["segments_info"] = []
        png = gt_json.with_name("panoptic_val") / annotation["file_name"]
        write_png(png, 0 * read_photo(png))
    write_json(gt_json, content)
    parity = run_parity([fake("pytorch")], PanopticFolder(gt_json), tmp_path, limits=Limits(min_pq=0.5))
    assert parity.reasons == [f"PyTorch, batch {batch}: no PQ, as no segment is there, needed 50" for batch in (1, 4)]


def test_few_differing_pixels_fail_though_pq_is_close(dataset: PanopticFolder, fake: Fake, tmp_path: Path) -> None:
    damaged = fake("onnxruntime", damage=((64, 48), 1 / 64))  # one row of image 12: .35 % of all pixels
    limits = Limits(max_pq_difference=0.01, min_identical=0.999)
    parity = run_parity([fake("pytorch"), damaged], dataset, tmp_path, limits=limits)
    assert parity.reasons and all("pixels identical" in reason for reason in parity.reasons)


def test_refuses_other_categories_and_other_resize_rules(dataset: PanopticFolder, fake: Fake, tmp_path: Path) -> None:
    other = fake("triton")
    other.manifest = other.manifest.model_copy(update={"resize": ResizeRule(short_side=40, max_side=64)})
    with pytest.raises(InputError, match="not the same model"):
        run_parity([fake("pytorch"), other], dataset, tmp_path / "out")
    other.manifest = other.manifest.model_copy(update={"categories": other.manifest.categories[:-1]})
    with pytest.raises(InputError, match="7 'cat' only in the data set"):
        run_parity([fake("pytorch"), other], dataset, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_truth_leaves_no_report(dataset: PanopticFolder, fake: Fake, tmp_path: Path) -> None:
    png = local(dataset.records[3].png)
    png.write_bytes(png.read_bytes()[:60])
    with pytest.raises(InputError, match=r"003\.png"):
        run_parity([fake("pytorch")], dataset, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_report_of_another_version_is_refused(dataset: PanopticFolder, fake: Fake, tmp_path: Path) -> None:
    run_parity([fake("pytorch")], dataset, tmp_path, limit=1)
    file = tmp_path / "parity.json"
    content = json.loads(file.read_text())
    assert content.pop("version") == 1
    file.write_text(json.dumps(content))
    assert Parity.load(file).equal, "without a version: from before there was one"
    file.write_text(json.dumps(content | {"version": 2}))
    with pytest.raises(InputError, match=r"parity\.json: version: Input should be 1; make this file again$"):
        Parity.load(file)


def test_reference_comes_first() -> None:
    assert order(["pytorch", "triton", "onnxruntime"], "onnxruntime") == ["onnxruntime", "pytorch", "triton"]
    with pytest.raises(InputError, match="unknown runtime 'tensorflow'"):
        order(["tensorflow"], "pytorch")


def invoke(monkeypatch: pytest.MonkeyPatch, predictors: dict[str, Any], *arguments: str) -> Any:
    """The command line with predictors of ours in the place of the run's."""

    @contextmanager
    def open_run(options: RuntimeOptions, names: Sequence[str]) -> Iterator[list[Any]]:
        yield [predictors[name] for name in names]

    monkeypatch.setattr(parity_module, "open_run", open_run)
    return CliRunner(env={"COLUMNS": "160"}).invoke(make_app(parity_module.main), list(arguments))


def test_command_line(gt_json: Path, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictors = {"pytorch": fake("pytorch"), "onnxruntime": fake("onnxruntime", damage=((48, 60), 0.125))}
    common = ["--gt-json", str(gt_json), "--run", str(tmp_path), "--runtimes", "pytorch", "onnxruntime"]
    result = invoke(monkeypatch, predictors, *common, "--batch-sizes", "1", "2", "--out", str(tmp_path / "a"))
    assert result.exit_code == 1, result.output
    assert "NOT equal" in result.output and re.search(r"PyTorch +1 .* reference", result.output)
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"parity.json", "report.html"}

    result = invoke(monkeypatch, predictors, *common, "--limit", "3", "--batch-sizes", "3")
    assert result.exit_code == 0, result.output  # the damaged image is the fourth
    parity = Parity.load(tmp_path / "parity.json")
    assert parity.dataset.images == 3
    assert [parity.machine[f"{runtime}, device"] for runtime in ("PyTorch", "ONNX Runtime")] == ["cpu", "cpu"]


def test_what_is_not_here_is_left_out_aloud(
    gt_json: Path, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPSNET_TRITON_ENV", "/nowhere")
    predictors = {name: fake(name) for name in ("pytorch", "onnxruntime")}
    result = invoke(monkeypatch, predictors, "--gt-json", str(gt_json), "--run", str(tmp_path), "--batch-sizes", "2")
    assert result.exit_code == 0, result.output
    lines = dict(line.split(" is left out: ") for line in result.stderr.splitlines() if " is left out: " in line)
    assert list(lines) == ["ONNX Runtime with TensorRT", "TensorRT", "TensorRT-RTX", "Torch-TensorRT", "Triton"]
    assert lines["TensorRT"] == f"{tmp_path} has no engine/model.plan; `upsnet engine --backend tensorrt` builds it"
    assert lines["Triton"].startswith("the server's environment /nowhere is missing")
    machine = Parity.load(tmp_path / "parity.json").machine
    assert {name: machine[name] for name in lines} == {name: f"left out: {line}" for name, line in lines.items()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "runs/absent"], "no data set: give --gt-json"),
        (["--run", "runs/absent", "--gt-json", "absent.json"], "absent.json: cannot be read"),
        (["--runtimes", "pytorch", "caffe"], "unknown runtime 'caffe'"),
    ],
)
def test_bad_input_is_code_2_and_one_line(
    project_root: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    script = subprocess.run(
        [sys.executable, project_root / "eval" / "parity.py", *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(project_root)},
        capture_output=True,
        text=True,
    )
    assert script.returncode == 2
    assert message in script.stderr and script.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
