"""Train, export, build, serve and compare: the whole way through, on a real Triton server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import eval.parity
import upsnet.command_line.predict
from upsnet.command_line.command import make_app


@pytest.mark.triton
def test_every_stop_says_the_same(tiny_run: Path, triton_environment: Path) -> None:
    data = tiny_run.parent / "shapes"
    result = CliRunner(env={"COLUMNS": "160"}).invoke(
        make_app(eval.parity.main),
        ["--run", str(tiny_run), "--gt-json", str(data / "train.json"), "--batch-sizes", "1", "2"],
    )
    assert result.exit_code == 0, result.output
    parity = json.loads((tiny_run / "parity.json").read_text())
    columns = parity["columns"]
    assert {(c["runtime"], c["batch"]) for c in columns} == {
        (runtime, batch) for runtime in ("pytorch", "onnxruntime", "triton") for batch in (1, 2)
    }
    for column in columns:
        assert column["results"]["Things"]["pq"] > 0.1, "photos learned by heart: there must be instances to compare"
        assert column["identical"] is None or column["identical"] >= 0.999
    report = (tiny_run / "report.html").read_text()
    assert report.count("data:image/") >= 8


def test_predict_an_own_photo(tiny_run: Path, tmp_path: Path) -> None:
    photo = tmp_path / "mine.jpg"
    Image.new("CMYK", (100, 70), (10, 40, 90, 0)).save(photo)
    result = CliRunner().invoke(
        make_app(upsnet.command_line.predict.main),
        [str(photo), "--out", str(tmp_path / "out"), "--runtime", "onnxruntime", "--run", str(tiny_run)],
    )
    assert result.exit_code == 0, result.output
    assert Image.open(tmp_path / "out/predictions/mine.png").size == (100, 70)
    predictions = json.loads((tmp_path / "out/predictions.json").read_text())
    known = {category["id"] for category in predictions["categories"]}
    assert {s["category_id"] for s in predictions["annotations"][0]["segments_info"]} <= known
