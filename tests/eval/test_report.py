from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from eval.charts import THEMES, line_chart, smooth
from eval.parity import run_parity
from eval.report import difference_picture, embed, training_charts
from upsnet.datasets.folder import PanopticFolder
from upsnet.errors import InputError
from upsnet.figures import share

Fake = Callable[..., Any]


def pictures(page: str) -> list[Image.Image]:
    data = re.findall(r'<img[^>]* src="data:image/jpeg;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in data]


def svg(address: str) -> str:
    return base64.b64decode(address.removeprefix("data:image/svg+xml;base64,")).decode()


def chart_lines(page: str, theme: str) -> list[int]:
    """How many lines each of the page's charts has. The grid's are deeper in the SVG; circles come by <use>."""
    kind = {"light": r'<img src="(data:image/svg[^"]+)"', "dark": r'dark\)" srcset="(data:image/svg[^"]+)"'}[theme]
    counts = []
    for address in re.findall(kind, page):
        (axes,) = (each for each in ElementTree.fromstring(svg(address)).iter() if each.get("id") == "axes_1")
        lines = [each for each in axes if each.get("id", "").startswith("line2d")]
        counts.append(sum(not list(each.iter("{http://www.w3.org/2000/svg}use")) for each in lines))
    return counts


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
    dark, light = (chart_lines(page, theme) for theme in ("dark", "light"))
    assert dark == light == [2, 3]  # loss: smoothed and raw; PQ: all, things, stuff
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


def test_large_pictures_shrink() -> None:
    data = base64.b64decode(embed(np.zeros((2000, 1000, 3), np.uint8)).split(",")[1])
    assert Image.open(io.BytesIO(data)).size == (320, 640)


def test_chart_is_drawn_in_the_colours_of_each_theme_and_always_alike() -> None:
    points = [(float(step), 5.0 - step / 100) for step in range(0, 500, 5)]
    charts = line_chart({"all": points, "things": points[:9], "stuff": points[:2]})
    assert charts == line_chart({"all": points, "things": points[:9], "stuff": points[:2]})
    for theme, (text, _, _, lines) in THEMES.items():
        drawn = svg(charts[theme])
        assert all(color in drawn for color in (text, *lines))
        assert "nan" not in drawn.lower()


def test_chart_survives_a_flat_line_and_one_point() -> None:
    for points in ([(3.0, 0.0), (3.0, 0.0)], [(3.0, 1.0)]):
        assert "nan" not in svg(line_chart({"PQ": points})["light"]).lower()


def test_smooth() -> None:
    points = [(float(step), float(step % 2)) for step in range(1001)]
    assert smooth(points, 2)[-1] == (1000.0, 0.5)
    assert smooth(points, 1) == points
    assert smooth([(1.0, 4.0), (2.0, 2.0), (3.0, 0.0)], 2) == [(1.0, 4.0), (2.0, 3.0), (3.0, 1.0)]
