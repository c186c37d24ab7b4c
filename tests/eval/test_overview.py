"""The picture in the README."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.overview import draw, main, table_rows
from eval.parity_report import ColumnFigures, Dataset, Parity, Quality
from upsnet.errors import InputError


def column(runtime: str, identical: float, reference: bool) -> ColumnFigures:
    pqs = {"All": 0.6157, "Things": 0.5, "Stuff": None}
    return ColumnFigures(
        runtime=runtime,
        batch=1,
        reference=reference,
        results={group: Quality(pq=pq, sq=pq, rq=pq, n=2) for group, pq in pqs.items()},
        difference=dict.fromkeys(pqs, 0.0),
        identical=identical,
        ms_per_image=1.0,
        identical_to_first_batch=None,
    )


PARITY = Parity.model_construct(  # type: ignore[call-arg]  # the picture shows no other keys
    model="demo",
    dataset=Dataset(gt_json="val.json", images=100),
    columns=[column("pytorch", 1.0, True), column("onnxruntime", 0.999998, False)],
)


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
