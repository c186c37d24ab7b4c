"""training.html of made-up runs: what it shows, what may be missing, and what must not come through."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

import pytest

from tests.upsnet.history.runs import ABSENT, HOSTILE, a_class, an_evaluation, losses, make_run, qualities
from upsnet.errors import InputError
from upsnet.history.observed import Picture
from upsnet.history.page import write_page
from upsnet.history.run import read_length, read_run

PIXEL = "data:image/jpeg;base64,AAAA"


def page_of(folder: Path, worst: list[Picture] | None = None) -> str:
    return write_page(folder, worst or []).read_text()


def headings(page: str) -> list[str]:
    return re.findall(r'<div class="card chart"><h3>(.*?)</h3>', page)


def tiles(page: str) -> dict[str, str]:
    return {label: value for value, label in re.findall(r'<div class="tile"><b>(.*?)</b><span>(.*?)</span>', page)}


def test_a_run_with_everything(tmp_path: Path) -> None:
    rows = losses(range(1, 41), gpu_gib=3.5)
    rows[20:20] = qualities({20: 0.25})
    rows += qualities({40: 0.5})
    tables = [[a_class("grass", pq), a_class("sky", 0.6, 2)] for pq in (0.2, 0.45)]
    make_run(tmp_path, rows, [an_evaluation(20, tables[0]), an_evaluation(40, tables[1])])
    page = page_of(tmp_path, [Picture(0.125, 7, "a.png", PIXEL, PIXEL, PIXEL)])
    quality = ["Validation PQ", "Trained with, and never seen"]  # one curve alone, mIoU, has its chart too
    assert headings(page)[:3] == [quality[0], "mIoU and AP", quality[1]]
    assert headings(page)[3:6] == ["Training loss", "semantic", "mask"]
    machine = ["Learning rate", "Images a second", "Waiting for data, % of the time", "GPU memory, GiB"]
    assert headings(page)[-4:] == machine  # and no gradient norm, which is null
    assert tiles(page) == {
        "step of 40": "40",
        "PQ at step 40": "50.0",
        "best PQ, step 40": "50.0",
        "PQ things": "–",
        "PQ stuff": "50.0",
        "images a second": "8.0",
        "waiting for data": "10%",
        "GPU memory, peak": "3.5 GiB",
    }
    names = re.findall(r'<span class="swatch"[^>]*></span><bdi>(\w+)', page)
    assert names == ["grass", "sky"]  # the lowest PQ first
    assert '<span class="up">+25.0</span>' in page and page.count('class="spark"') == 2
    assert "10.0 % of the pixels void, the truth 4.0 %; 2.5 % are void in both" in page
    taken = re.findall(r"<dt>(.*?)</dt><dd>.*?number\">(.*?)</span></dd>", page)
    assert taken == [("grass", "50.0 %"), ("sky", "50.0 %"), ("void in the truth too", "25.0 %")]
    assert page.count(f'src="{PIXEL}"') == 3 and "image 7 · PQ 12.5" in page
    assert "No warning" in page and 'role="alert"' not in page


def test_nothing_comes_from_elsewhere_and_names_are_text(tmp_path: Path) -> None:
    rows = [*losses([1, 2], **{HOSTILE: 1.0}), *qualities({1: 0.1, 2: 0.2})]
    table = [a_class(HOSTILE, 0.5), a_class(HOSTILE + "2", 0.5, 2, **ABSENT)]
    config = f"name: '{HOSTILE}'\n"
    folder = make_run(tmp_path / "<b>run</b>", rows, [an_evaluation(1, table), an_evaluation(2, table)], config)
    page = page_of(folder, [Picture(0.1, 7, HOSTILE, PIXEL, PIXEL, PIXEL)])
    assert "<script" not in page and "<b>run" not in page
    assert page.count(escape(HOSTILE, quote=False).replace('"', "&#34;")) >= 5
    addresses = re.findall(r'(?:src|href|srcset)="(.*?)"', page)
    assert set(addresses) == {PIXEL} and "url(" not in page and "@import" not in page and "http" not in page


def test_before_the_first_evaluation_and_of_an_older_version(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path, losses([1, 2]), None, None))
    assert "There was no evaluation yet" in page and "Curves begin with the second evaluation" in page
    assert "step of" not in page and "Classes" not in page and "worst images" not in page
    page = page_of(make_run(tmp_path, [*losses([1, 2]), *qualities({1: 0.1, 2: 0.2})]))
    assert headings(page)[0] == "Validation PQ" and "Classes" not in page
    assert page_of(make_run(tmp_path, []))


def test_a_run_that_evaluates_nothing_says_so(tmp_path: Path) -> None:
    config = "schedule:\n  evaluate_every: 0\n"
    page = page_of(make_run(tmp_path, losses([1, 2]), [], config))
    assert "evaluates nothing, so there is no PQ: schedule.evaluate_every is 0" in page
    assert "no evaluation yet" not in page and "Curves begin" not in page
    assert headings(page)[:2] == ["Training loss", "semantic"]
    page = page_of(make_run(tmp_path, [*losses([1, 2]), *qualities({1: 0.1})], [an_evaluation(1)], config))
    assert "there are no newer figures" in page and "there is no PQ" not in page  # it did before it went on
    worst = [{"image_id": 7, "file_name": "a&b.png", "pq": 0.125}]
    page = page_of(make_run(tmp_path, losses([1]), [an_evaluation(1, worst=worst)], config))
    assert (
        "At step 1: <bdi>a&amp;b.png</bdi> (PQ 12.5). Only an evaluation draws" in page
        and "No image has a PQ" not in page
    )


def test_a_pq_that_is_no_number_is_none(tmp_path: Path) -> None:
    folder = make_run(tmp_path, losses([1]) + qualities({1: 0.5, 2: float("nan")}))
    assert [row["step"] for row in read_run(folder).scored] == [1]


def test_no_image_was_evaluated(tmp_path: Path) -> None:
    nothing = {"pixels": 0, "predicted": 0, "truth": 0, "both": 0, "predicted_bins": [0] * 8, "truth_bins": [0] * 8}
    table = [a_class("grass", **ABSENT)]
    empty = an_evaluation(2, table, images=0, void=nothing, validation=None, training=None)
    page = page_of(make_run(tmp_path, [*losses([1, 2]), *qualities({2: None})], [empty]))
    for words in (
        "Of 0 validation images",
        "No image was evaluated.",
        "No image has a PQ.",
        "prediction: <bdi>grass</bdi>.",
    ):
        assert words in page
    assert "No warning" not in page and "nan" not in page


def test_no_void_anywhere_and_a_class_that_comes_and_goes(tmp_path: Path) -> None:
    none = {"pixels": 900, "predicted": 0, "truth": 0, "both": 0, "predicted_bins": [3] + [0] * 7}
    void = none | {"truth_bins": none["predicted_bins"]}
    away, there = a_class("cat", isthing=True, **ABSENT), a_class("cat", 0.5, isthing=True, pixels=0, void=0)
    page = page_of(make_run(tmp_path, losses([1]), [an_evaluation(1, [away]), an_evaluation(2, [there], void=void)]))
    assert "leaves 0.0 % of the pixels void" in page and "<dt>" not in page
    row = page[page.index("<tbody>") : page.index("</tbody>")]
    assert (
        row.count("<td>–</td>") == 2 and "spark" not in row
    )  # no change, no share of its pixels; one point is no line


def test_half_a_line_is_left_out_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path, losses([1, 2]), [an_evaluation(2)])
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        with (folder / name).open("a") as stream:
            stream.write('{"step": 3, "lo')
    assert tiles(page_of(folder))["step of 40"] == "2"
    (folder / "evaluations.jsonl").write_text('{"step": 2, "images": -1}\n')
    with pytest.raises(InputError, match=r"evaluations\.jsonl: line 1: images: .*; delete it"):
        page_of(folder)
    (folder / "plan.json").write_text("[]")
    assert read_length(folder / "plan.json") is None
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match=r"no metrics\.jsonl is there"):
        page_of(folder)
