"""evaluations.jsonl and training.html of real runs of the tiny network, also where a run was killed on the way."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.tiny_network import Losses, TinyNetwork, assert_same_run, metrics, settings, tiny
from training.distributed import Process
from training.evaluation import seen
from training.loop import Run, train
from upsnet.datasets.folder import PanopticFolder, Record
from upsnet.errors import InputError
from upsnet.history.evaluation import read_evaluations
from upsnet.history.run import read_run
from upsnet.photos import Least

STEP = re.compile(r'<div class="tile"><b>(\d+)</b><span>step of')


def test_the_files_of_an_evaluation(unbroken: Path) -> None:
    evaluations = read_evaluations(unbroken / "evaluations.jsonl")
    assert [each.step for each in evaluations] == [6, 12]
    last = evaluations[-1]
    assert last.images == 3 and last.validation is not None and last.training is not None
    assert last.training.images == 3  # of six: as many as were validated
    assert len(last.worst) == 3 and sum(last.void.predicted_bins) == 3
    present = [each.pq for each in last.classes if each.occurs]
    (pq,) = (line["pq"] for line in metrics(unbroken) if line["step"] == 12 and "pq" in line)
    assert sum(present) / len(present) == pytest.approx(pq)
    page = (unbroken / "training.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') == 9 and "step of 12" in page
    assert read_run(unbroken).missing == []


@pytest.mark.parametrize("old", [False, True])
def test_a_run_that_was_killed_has_the_whole_course(unbroken: Path, shapes: Path, tmp_path: Path, old: bool) -> None:
    """Killed after lines of steps that its checkpoint does not know; and a run of a version without the file."""

    def fails(call: int, losses: Losses, model: TinyNetwork) -> Losses:
        if call == 10:
            raise MemoryError
        return losses

    with pytest.raises(MemoryError):
        train(settings(shapes), tmp_path, "cpu", tiny(accident=fails))
    lines = tmp_path / "evaluations.jsonl"
    (line,) = lines.read_text().splitlines()
    with lines.open("a") as stream:
        stream.write(json.dumps(json.loads(line) | {"step": 9}) + '\n{"step": 10, "ima')
    (tmp_path / ".training.0123abcd.html").touch()  # half written
    if old:
        lines.unlink()
    assert train(settings(shapes), tmp_path, "cpu", tiny()) == 0
    assert not list(tmp_path.glob(".*"))
    assert [each.step for each in read_evaluations(lines)] == ([12] if old else [6, 12])
    if not old:
        assert_same_run(tmp_path, unbroken)
    page = (tmp_path / "training.html").read_text()
    charts = [name for name in ("Validation PQ", "Training loss", "Learning rate") if f"<h3>{name}</h3>" in page]
    assert len(charts) == 3  # from metrics.jsonl, hence whole in both


def test_an_evaluation_that_is_still_to_be_done_is_cut(shapes: Path, tmp_path: Path) -> None:
    """Killed between the line of evaluations.jsonl and the checkpoint that knows of it."""

    class Killed(Exception):
        pass

    def fails(self: Run, name: str) -> None:
        raise Killed

    run = settings(shapes, iterations=6)
    with pytest.MonkeyPatch.context() as patch:
        save = Run.save
        patch.setattr(
            Run, "save", lambda self, name: fails(self, name) if name.startswith("best") else save(self, name)
        )
        with pytest.raises(Killed):
            train(run, tmp_path, "cpu", tiny())
    assert len(read_evaluations(tmp_path / "evaluations.jsonl")) == 1
    assert train(run, tmp_path, "cpu", tiny()) == 0
    assert [each.step for each in read_evaluations(tmp_path / "evaluations.jsonl")] == [6]


def test_a_damaged_line_is_named_before_a_step_is_taken(shapes: Path, tmp_path: Path) -> None:
    assert train(settings(shapes, iterations=6), tmp_path, "cpu", tiny()) == 0
    (tmp_path / "evaluations.jsonl").write_text('{"step": 6, "images": 3}\n')
    before = metrics(tmp_path)
    with pytest.raises(InputError, match=r"evaluations\.jsonl: line 1: classes: .*; delete it"):
        train(settings(shapes), tmp_path, "cpu", tiny())
    assert metrics(tmp_path) == before


def test_a_run_without_evaluations_has_a_page_of_each_checkpoint(shapes: Path, tmp_path: Path) -> None:
    pages: list[str] = []

    def noted(call: int, losses: Losses, model: TinyNetwork) -> Losses:
        page = tmp_path / "training.html"
        pages.append(STEP.findall(page.read_text())[0] if page.exists() else "")
        return losses

    assert train(settings(shapes, evaluate_every=0, iterations=6), tmp_path, "cpu", tiny(accident=noted)) == 0
    assert pages == [""] * 4 + ["4"] * 2
    page = (tmp_path / "training.html").read_text()
    assert STEP.findall(page) == ["6"] and "schedule.evaluate_every is 0" in page
    assert all(f"<h3>{name}</h3>" in page for name in ("Training loss", "Learning rate", "Images a second"))
    assert (tmp_path / "evaluations.jsonl").read_text() == ""


def test_a_run_that_goes_on_without_evaluations_keeps_what_it_had(shapes: Path, tmp_path: Path) -> None:
    assert train(settings(shapes, iterations=6), tmp_path, "cpu", tiny()) == 0
    assert train(settings(shapes, iterations=8, evaluate_every=0), tmp_path, "cpu", tiny()) == 0
    page = (tmp_path / "training.html").read_text()
    assert STEP.findall(page) == ["8"] and "PQ at step 6" in page and "there are no newer figures" in page
    (evaluation,) = read_evaluations(tmp_path / "evaluations.jsonl")
    assert all(each.file_name in page for each in evaluation.worst) and "data:image" not in page


def test_seen_images_are_spread_evenly(gt_json: Path, fake: type, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, process = PanopticFolder(gt_json), Process(0, 1, torch.device("cpu"))
    read: list[int] = []
    whole = folder.read

    def noted(record: Record, *more: Least | None) -> tuple[np.ndarray, np.ndarray]:
        read.append(record.image_id)
        return whole(record, *more)

    monkeypatch.setattr(folder, "read", noted)
    found = seen(fake("x"), folder, 3, process)
    ids = folder.records.image_ids.tolist()
    assert found is not None and found.images == 3
    assert read == [ids[0], ids[(len(ids) - 1) // 2], ids[-1]]
    assert seen(fake("x"), folder, 0, process) is None
