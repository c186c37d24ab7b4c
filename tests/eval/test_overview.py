"""The picture in the README."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.overview import draw, main, table_rows
from upsnet.errors import InputError


def column(runtime: str, identical: float, reference: bool) -> dict:
    results = {group: {"pq": pq} for group, pq in (("All", 0.6157), ("Things", 0.5), ("Stuff", None))}
    return {"runtime": runtime, "batch": 1, "results": results, "identical": identical, "reference": reference}


PARITY = {
    "model": "demo",
    "dataset": {"images": 100},
    "columns": [column("pytorch", 1.0, True), column("onnxruntime", 0.999998, False)],
}


def test_table_says_what_parity_says() -> None:
    assert table_rows(PARITY) == [
        ["PyTorch", "1", "61.6", "50.0", "–", "reference"],
        ["ONNX Runtime", "1", "61.6", "50.0", "–", "99.999 %"],
    ]


def test_picture_is_a_small_jpeg(tmp_path: Path) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (480, 480, 3), np.uint8)  # noise: nothing packs worse
    draw(photo, photo, PARITY, tmp_path / "overview.jpg")
    with Image.open(tmp_path / "overview.jpg") as picture:
        assert (picture.format, picture.width) == ("JPEG", 1240)


def test_an_image_that_is_not_there(tmp_path: Path, gt_json: Path) -> None:
    folders = f"segments: {gt_json.parent}/panoptic_{gt_json.stem}, images: {gt_json.parent}/{gt_json.stem}"
    (tmp_path / "config.yaml").write_text(f"data: {{val: {{json_file: {gt_json}, {folders}}}}}\n")
    with pytest.raises(InputError, match=r"nosuch\.png: no such image"):
        main(run=tmp_path, image="nosuch.png", out=tmp_path / "overview.jpg")
    assert not (tmp_path / "overview.jpg").exists()
