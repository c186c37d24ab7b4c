from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eval.parity import run_parity
from eval.report import difference_picture, training_charts
from upsnet.datasets.folder import PanopticFolder
from upsnet.errors import InputError
from upsnet.figures import share

Fake = Callable[..., Any]


def pictures(page: str) -> list[Image.Image]:
    data = re.findall(r'<img[^>]* src="data:image/jpeg;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in data]


def chart_lines(page: str) -> list[int]:
    """How many lines each of the page's charts has."""
    return [drawn.count("<polyline") for drawn in re.findall(r'<svg class="plot".*?</svg>', page, re.DOTALL)]


def test_page_is_self_contained_with_all_pictures(gt_json: Path, fake: Fake, tmp_path: Path) -> None:
    run = tmp_path / "run<1>"
    run.mkdir()
    (run / "config.yaml").write_text("name: <script>alert(1)</script>\n")
    rows = [{"step": step, "loss": 9 / step, "lr": 0.1} for step in range(1, 40)]
    rows += [{"step": step, "pq": step / 100, "pq_things": 0.1, "pq_stuff": 0.2} for step in (20, 40)]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    damaged = fake("triton", damage=((48, 60), 0.125))
    run_parity([fake("pytorch"), fake("onnxruntime"), damaged], PanopticFolder(gt_json), run, run=run)
    page = (run / "report.html").read_text()
    assert len(page) < 2_000_000
    (link,) = re.findall(r'<a href="([^"]*)">the viewer</a>', page)
    assert link == "http://127.0.0.1:8010/" and f"make view RUN=&#39;{html.escape(str(run))}&#39;" in page
    loaded = page.replace(f'<a href="{link}"', "")
    assert not re.search(r'(src|href|srcset)="(?!data:)', loaded) and "@import" not in page and "url(" not in page
    shown = re.findall(r"<h3>(\d+\.png)<span>(\w+)", page)
    assert shown[0] == ("003.png", "worst")  # the damaged one
    assert len(dict(shown)) == len(shown) == 5
    # image, truth, three runtimes for each, and one picture of the pixels that differ
    images = pictures(page)
    assert len(images) == 5 * len(shown) + 1
    assert all(np.ptp(np.asarray(image)) > 30 for image in images)
    assert chart_lines(page) == [2, 3]  # loss: raw and smoothed; PQ: all, things, stuff
    assert "<script>" not in page and "&lt;script&gt;" in page
    for word in ("✕ Not equal", "Triton, batch 4", "grass", "onnxruntime", "87.500 % identical", "no segments")[:5]:
        assert word in page


def test_one_runtime_alone_and_a_run_without_history(gt_json: Path, fake: Fake, tmp_path: Path) -> None:
    run_parity([fake("onnxruntime")], PanopticFolder(gt_json), tmp_path, batch_sizes=[2], limit=1, run=tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Training" not in page and "Not equal" not in page
    assert len(pictures(page)) == 3


def test_broken_metrics_name_the_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    with pytest.raises(InputError, match=r"metrics\.jsonl: line 2 is not JSON"):
        training_charts(tmp_path / "metrics.jsonl")


def test_share_is_never_rounded_up() -> None:
    assert [share(value) for value in (1.0, 0.9999999, 0.99899, 0.5)] == ["100 %", "99.999 %", "99.899 %", "50.000 %"]


def test_difference_picture_marks_only_what_differs() -> None:
    identical = np.array([[True, False]])
    picture = difference_picture(np.full((1, 2, 3), 200, np.uint8), identical)
    assert picture.tolist() == [[[90, 90, 90], [255, 60, 60]]]
