"""`upsnet runs compare`: what differs, how far runs of other versions go, and its page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.upsnet.history.runs import ABSENT, CONFIG, HOSTILE, a_class, an_evaluation, losses, make_run, qualities
from upsnet.command_line.command import make_app
from upsnet.errors import InputError
from upsnet.history.command import main
from upsnet.history.compare import compare
from upsnet.history.run import read_run


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(make_app(main), [str(each) for each in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    table = [a_class("cat", 0.3, isthing=True), a_class("sky", 0.5, 2), a_class("sea", 0.0, 3, **ABSENT)]
    other = [a_class("cat", 0.4, 11, isthing=True), a_class("sky", 0.25, 12)]  # other ids
    a = make_run(tmp_path / "a", losses(range(1, 51)) + qualities({25: 0.4, 50: 0.35}), [an_evaluation(50, table)])
    b = make_run(
        tmp_path / "b",
        losses(range(1, 26), gpu_gib=2.0) + qualities({25: 0.3}),
        [an_evaluation(25, other)],
        CONFIG.replace("0.1", "0.2").replace("hybrid", "timm") + "  ema: null\n",
    )
    return a, b


def test_figures_and_settings(pair: tuple[Path, Path]) -> None:
    found = compare([read_run(folder) for folder in pair])
    assert dict(found.settings) == {"model.kind": ["hybrid", "timm"], "schedule.lr": ["0.1", "0.2"]}
    figures = dict(found.figures)
    assert figures["steps"] == ["50 of 40", "25 of 40"]
    assert figures["best PQ"] == ["40.0 (step 25)", "30.0 (step 25)"]
    assert figures["last PQ"] == ["35.0", "30.0"] and "last PQ things" not in figures
    # the mean of the last 2 of 50 lines, and the last of 25
    assert figures["loss at the end"] == [f"{(10 / 49 + 10 / 50) / 2:.4g}", "0.4"]
    assert figures["GPU memory, GiB"] == ["–", "2.0"]
    assert [(row.name, row.pqs) for row in found.classes] == [("sky", [0.5, 0.25]), ("cat", [0.3, 0.4])]
    assert found.missing == ["a: its config.yaml lacks schedule.ema"]


def test_command_and_page(pair: tuple[Path, Path], tmp_path: Path) -> None:
    page = tmp_path / "pages" / "compare.html"
    status, out, err = run(*pair, "--out", page)
    assert (status, err) == (0, "")
    assert re.search(r"schedule\.lr +0\.1 +0\.2", out) and re.search(r"best PQ +40\.0 \(step 25\) +30\.0", out)
    assert "a: its config.yaml lacks schedule.ema" in out and str(page) in out
    text = page.read_text()
    assert "http" not in text and not re.search(r'(src|href)="', text)
    charts = re.findall(r'<div class="card chart"><h3>(.*?)</h3>', text)
    assert charts[:6] == ["PQ", "PQ stuff", "mIoU", "Training loss", "semantic", "mask"]
    assert all(name in text for name in ("line-1", "line-2", "Settings that differ", "What is missing"))


def test_as_far_as_they_go(tmp_path: Path) -> None:
    old = make_run(tmp_path / "old", losses([1, 2]) + qualities({2: 0.5}), None, None)
    new = make_run(tmp_path / "new", [], [])
    running = make_run(tmp_path / "running", losses([1, 2]))
    with (running / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 3, "lo')  # being written
    found = compare([read_run(folder) for folder in (old, new, running)])
    assert found.missing == [
        "old: no config.yaml: its settings are not known",
        "old: no evaluations.jsonl, as a run of an older version: no PQ by class",
        "new: no losses yet",
        "new: no evaluation with a PQ",
        "running: no evaluation with a PQ",
    ]
    assert dict(found.figures)["steps"] == ["2", "0 of 40", "2 of 40"]
    status, out, _ = run(old, new, running, "--out", tmp_path / "c.html")
    assert status == 0 and "no setting differs, as far as they are known" in out
    assert "None, as far as they are known" in (tmp_path / "c.html").read_text()


def test_hostile_names(tmp_path: Path) -> None:
    folders = [
        make_run(
            tmp_path / f"[red]<i>{number}",
            losses([1, 2], **{HOSTILE: 1.0}),
            [an_evaluation(2, [a_class(HOSTILE, number / 10)])],
            f"'{HOSTILE}': '[b]<u>{number}'\n",
        )
        for number in (1, 2)
    ]
    status, out, _ = run(*folders, "--out", tmp_path / "c.html")
    assert status == 0 and "[red]<i>1" in out and "[b]<u>2" in out
    page = (tmp_path / "c.html").read_text()
    assert not re.search(r"<(script|i>|u>)", page.replace("<i style=", ""))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere/at/all", "no such run: it is not here; give its folder"),
        ("none", "no such run: neither none nor runs/none is here"),
        ("file", "no such run: a file"),
        ("empty", "no metrics.jsonl is there"),
        ("broken", "metrics.jsonl: line 1 is not JSON with a step"),
        ("config", "config.yaml: not a readable YAML file"),
        ("list", "config.yaml: a configuration is a mapping of sections, found list"),
        ("good", "named twice"),
    ],
)
def test_bad_folders_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(Path("good"), losses([1]))
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    make_run(Path("broken"), []).joinpath("metrics.jsonl").write_text("[]\n")
    make_run(Path("config"), [], None, "a: [")
    make_run(Path("list"), [], None, "[1]")
    status, out, err = run("good", name, "--out", "c.html")
    assert (status, out) == (2, "") and words in err and err.count("\n") == 1
    assert not Path("c.html").exists()


def test_two_runs_are_wanted_and_names_that_are_equal_become_paths(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / each / "x", losses([1])) for each in "ab"]
    with pytest.raises(InputError, match="two runs or more"):
        compare([read_run(folders[0])])
    assert compare([read_run(each) for each in folders]).names == [str(each) for each in folders]
