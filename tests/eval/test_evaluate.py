from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.evaluate import evaluate
from tests.folders import local
from upsnet.datasets.folder import PanopticFolder
from upsnet.errors import InputError
from upsnet.metrics.pq_files import evaluate as evaluate_files

Fake = Callable[..., Any]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_equals_the_evaluator_on_its_files(gt_json: Path, fake: Fake, tmp_path: Path, batch_size: int) -> None:
    out = tmp_path / "out"
    predictor = fake("onnxruntime", damage=((48, 48), 0.6))
    report = evaluate(predictor, PanopticFolder(gt_json), out, batch_size)
    assert sum(predictor.batches) == 5 and max(predictor.batches) == min(batch_size, 5)
    official = evaluate_files(
        gt_json=gt_json,
        pred_json=out / "predictions.json",
        gt_folder=gt_json.parent / "panoptic_val",
        pred_folder=out / "predictions",
    )
    assert report["per_class"] == official["per_class"]
    for group, figures in official["results"].items():
        assert report["results"][group] == pytest.approx(figures, abs=1e-12)
    assert 0 < report["results"]["All"]["pq"] < 1
    assert json.loads((out / "pq.json").read_text()) == report
    assert len(list((out / "predictions").iterdir())) == 5


def test_a_damaged_photo_leaves_nothing(gt_json: Path, fake: Fake, tmp_path: Path) -> None:
    dataset = PanopticFolder(gt_json)
    local(dataset.records[4].photo).write_bytes(b"no photo")
    with pytest.raises(InputError, match=r"004\.png"):
        evaluate(fake("x"), dataset, tmp_path / "out")
    assert not (tmp_path / "out").exists()
