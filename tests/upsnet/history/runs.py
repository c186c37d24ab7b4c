"""Folders as training runs leave them, small and made up."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upsnet.history.evaluation import NAME

CONFIG = """name: small
model:
  kind: hybrid
schedule:
  images: 80
  lr: 0.1
"""
HOSTILE = '<script>alert("x")</script>&\u202e'


def losses(steps: Sequence[int], **more: float) -> list[dict[str, Any]]:
    """Lines with losses that fall as 10 / step."""
    return [
        {"step": step, "loss": 10 / step, "lr": 0.1, "semantic": 6 / step, "mask": 4 / step, "grad_norm": None}
        | {"images_per_second": 8.0, "data_share": 0.1}
        | more
        for step in steps
    ]


def qualities(pqs: Mapping[int, float | None]) -> list[dict[str, Any]]:
    return [{"step": step, "pq": pq, "pq_things": None, "pq_stuff": pq, "miou": pq} for step, pq in pqs.items()]


def a_class(name: str, pq: float = 0.0, id: int = 1, isthing: bool = False, **more: Any) -> dict[str, Any]:
    counts = {"tp": 4, "fp": 1, "fn": 1, "pixels": 200, "void": 50}
    figures = {"pq": pq, "sq": 0.9, "rq": 0.8}
    return {"id": id, "name": name, "isthing": isthing, "color": [1, 2, 3]} | figures | counts | more


ABSENT: dict[str, Any] = {"sq": 0.0, "rq": 0.0, "tp": 0, "fp": 0, "fn": 0, "pixels": 0, "void": 0}


def spread(mean: float, images: int = 50, deviation: float = 0.1) -> dict[str, Any]:
    return {"images": images, "mean": mean, "deviation": deviation}


def an_evaluation(step: int, classes: Sequence[dict[str, Any]] = (), **more: Any) -> dict[str, Any]:
    bins = [1, 2, 0, 0, 0, 0, 0, 0]
    void = {"pixels": 1000, "predicted": 100, "truth": 40, "both": 25, "predicted_bins": bins, "truth_bins": bins[::-1]}
    line = {"step": step, "images": 3, "classes": list(classes), "void": void}
    return line | {"validation": spread(0.5), "training": spread(0.55), "worst": []} | more


def make_run(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Mapping[str, Any]] | None = None,
    config: str | None = CONFIG,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text(lines(rows))
    if evaluations is not None:
        (folder / NAME).write_text(lines(evaluations))
    if config is not None:
        (folder / "plan.json").write_text('{"images_per_step": 2, "iterations": 40}')
        (folder / "config.yaml").write_text(config)
    return folder


def lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
