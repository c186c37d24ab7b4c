"""The ablation: what is trained on which seeds, what is scored again, and what follows from the figures."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from eval.ablation import run
from eval.ablation.command import ablate
from eval.ablation.parts import PARTS, variants_of
from eval.ablation.report import Ablation, Row, SeedFigures, ablation_table, worth_of
from eval.ablation.trainings import Trainings
from training.config import dump_config, load_config
from upsnet.errors import InputError
from upsnet.files import write_json
from upsnet.photos import write_png

BEST = Path("training/configs/shapes_best.yaml")
HARD = Path("training/configs/shapes_hard.yaml")  # which `make ablation` takes apart
SOME = ("panoptic loss", "mask pruning", "dice loss")
Trained = list[tuple[str, tuple[str, ...]]]


@pytest.fixture
def trained(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """Instead of a training, the tiny run's copy; the list of those that were asked for."""
    asked: Trained = []

    def copy(_: Trainings, config: Path, folder: Path, device: str, overrides: tuple[str, ...]) -> None:
        asked.append((folder.name, overrides))
        if not folder.exists():
            shutil.copytree(tiny_run, folder)
            (folder / "config.yaml").write_text(dump_config(load_config(config, overrides)))

    monkeypatch.setattr(Trainings, "run", copy)
    return asked


def run_demo(tiny_run: Path, out: Path, seeds: int = 2, *more: str, parts: tuple[str, ...] = SOME) -> Ablation:
    from upsnet.datasets.validation_set import open_dataset

    split = open_dataset(None, run=tiny_run).split
    overrides = tuple(
        f"data.{name}.{key}={getattr(split, key)}"
        for name in ("train", "val")
        for key in ("json_file", "segments", "images")
    )
    return ablate(BEST, out, seeds, 1, "cpu", (*overrides, *more), parts)


def test_what_is_trained_and_scored(tiny_run: Path, tmp_path: Path, trained: Trained) -> None:
    found = run_demo(tiny_run, tmp_path)
    assert [(name, overrides[6:]) for name, overrides in trained] == [
        ("everything_0", ("seed=0",)),  # pruning is left out of its predictions alone
        ("without_panoptic_loss_0", ("loss.panoptic=0", "seed=0")),
        ("with_dice_loss_0", ("loss.dice=1", "seed=0")),
        ("everything_1", ("seed=1",)),
        ("without_panoptic_loss_1", ("loss.panoptic=0", "seed=1")),
        ("with_dice_loss_1", ("loss.dice=1", "seed=1")),
    ]
    assert [row.name for row in found.rows] == [
        "everything", "without panoptic loss", "without mask pruning", "with dice loss"
    ]  # fmt: skip
    assert all([each.seed for each in row.seeds] == [0, 1] for row in found.rows)
    assert found.rows[0].seeds[0].pq == found.rows[1].seeds[0].pq, "copies of one run"
    assert Ablation.load(tmp_path / "ablation.json") == found
    with Image.open(tmp_path / "ablation.png") as picture:
        assert picture.width > 1000


def test_scores_are_kept_while_the_weights_are_the_same(
    tiny_run: Path, tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_demo(tiny_run, tmp_path, seeds=1)
    scored: list[str] = []

    def count(of: run.Run, device: str, prediction: str) -> SeedFigures:
        scored.append(f"{of.folder.name} {prediction}")
        return SeedFigures(seed=of.seed, pq=0.5, pq_things=0.5, pq_stuff=0.5)

    monkeypatch.setattr(run, "score", count)
    trained.clear()
    assert run_demo(tiny_run, tmp_path, seeds=1) == first and not scored
    assert not trained, "no process for a run that is finished"
    os.utime(tmp_path / "everything_0" / "last.safetensors")  # trained further
    again = run_demo(tiny_run, tmp_path, seeds=1)
    assert [name for name, _ in trained] == ["everything_0"]
    assert sorted(scored) == ["everything_0 as it is", "everything_0 without pruning"]
    assert again.rows[0].seeds[0].pq == 0.5 and again.rows[1] == first.rows[1]


def test_a_run_of_other_settings_is_not_taken(
    tiny_run: Path, tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "score", lambda of, *_: figures(of.seed, 0.5))
    run_demo(tiny_run, tmp_path, 1)
    trained.clear()
    with pytest.raises(InputError, match=r"everything_0: was trained with .*: schedule.iterations \(\d+ against 7\); "):
        run_demo(tiny_run, tmp_path, 1, "schedule.iterations=7")  # `upsnet train` calls it finished, or goes on with it
    assert not trained
    run_demo(tiny_run, tmp_path, 1, "data.workers=0")  # which changes no figure
    assert not trained


def test_other_parts_and_seeds_that_are_finished_stay(
    tiny_run: Path, tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def by_name(of: run.Run, device: str, prediction: str) -> SeedFigures:
        return figures(of.seed, 0.4 if of.folder.name.startswith("with") else 0.5)

    monkeypatch.setattr(run, "score", by_name)
    run_demo(tiny_run, tmp_path, 2, parts=("dice loss", "mask pruning"))
    trained.clear()
    (tmp_path / "without_warm-up_0").mkdir()  # not finished
    found = run_demo(tiny_run, tmp_path, 1, parts=("panoptic loss",))
    assert [name for name, _ in trained] == ["without_panoptic_loss_0"]
    seeds = {
        "everything": [0, 1],
        "without panoptic loss": [0],
        "without mask pruning": [0, 1],
        "with dice loss": [0, 1],
    }
    assert {row.name: [each.seed for each in row.seeds] for row in found.rows} == seeds
    assert list(seeds) == [row.name for row in found.rows], "in the order of a whole table"
    assert [worth and worth.mean for worth in map(found.worth, found.rows)] == [
        None, pytest.approx(0.1), 0.0, pytest.approx(-0.1)
    ]  # fmt: skip
    assert Ablation.load(tmp_path / "ablation.json") == found and "left out" not in capsys.readouterr().out
    config = tmp_path / "with_dice_loss_1" / "config.yaml"
    config.write_text(config.read_text().replace("dice: 1", "dice: 2"))
    found = run_demo(tiny_run, tmp_path, 1, parts=("panoptic loss",))
    assert [each.seed for each in found.rows[3].seeds] == [0]
    assert len(found.left_out) == 1 and "with_dice_loss_1: was trained with other settings" in found.left_out[0]
    assert f"left out: {found.left_out[0]}" in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize("damage", ["", None])
def test_a_run_whose_configuration_is_lost_is_to_be_deleted(tmp_path: Path, damage: str | None) -> None:
    folder = tmp_path / "everything_0"
    folder.mkdir()
    (folder / "last.safetensors").touch()
    if damage is not None:
        (folder / "config.yaml").write_text(damage)
    with pytest.raises(InputError, match=r"everything_0/config.yaml: .*: delete .*everything_0$"):
        run.check_settings([run.Run(folder, 0, variants_of(BEST)[0][:1])], BEST, ())


def test_figures_that_are_no_json_are_to_be_deleted(tmp_path: Path) -> None:
    (tmp_path / "figures.json").write_text("{")
    with pytest.raises(InputError, match=r"figures.json: not valid JSON: .*; delete it$"):
        run.Scores.load(tmp_path / "figures.json")
    with pytest.raises(InputError, match=r"none.json: cannot be read: No such file or directory$"):
        run.Scores.load(tmp_path / "none.json")


def test_out_is_looked_at_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/x: .*file is a file, not a folder"):
        ablate(BEST, tmp_path / "file" / "x")


@pytest.mark.parametrize(
    ("things", "images", "why"), [(0, 2, "no class of things"), (1, 1, "no second image to paste from")]
)
def test_a_part_that_the_data_do_not_allow_is_left_out(tmp_path: Path, things: int, images: int, why: str) -> None:
    """Before the first training, not by an error after all the others'."""
    photos = [{"id": i, "file_name": f"{i}.png", "height": 8, "width": 8} for i in range(images)]
    truth = [{"image_id": i, "file_name": f"{i}.png", "segments_info": []} for i in range(images)]
    categories = [{"id": 1, "name": "it", "isthing": things, "color": [1, 2, 3]}]
    write_json(tmp_path / "train.json", {"images": photos, "annotations": truth, "categories": categories})
    for photo in photos:
        write_png(tmp_path / str(photo["file_name"]), np.zeros((8, 8, 3), np.uint8))
    places = {"json_file": tmp_path / "train.json", "segments": tmp_path, "images": tmp_path}
    overrides = tuple(f"data.train.{key}={value}" for key, value in places.items())
    variants, _ = variants_of(BEST, overrides, ["dice loss", "copy-paste"])
    kept, left_out = run.possible(variants, BEST, overrides)
    assert [variant.name for variant in kept] == ["everything", "with dice loss"]
    assert len(left_out) == 1 and left_out[0].startswith("with copy-paste: ") and why in left_out[0]
    with pytest.raises(InputError, match=r"none.json: no such file"):
        run.possible(variants, BEST, (*overrides, f"data.train.json_file={tmp_path / 'none.json'}"))


def test_parts_of_another_configuration() -> None:
    names = [variant.name for variant in variants_of(BEST, ("schedule.ema=0.99", "loss.panoptic=0"))[0]]
    assert "without average of the weights" in names and "with panoptic loss" in names
    variants, left_out = variants_of(Path("training/configs/panoptic_fpn_r50.yaml"))
    assert "without panoptic loss" not in [variant.name for variant in variants]
    assert any("with panoptic loss" in line and "heuristic" in line for line in left_out)
    with pytest.raises(InputError, match=r"no such part: luck; there are panoptic loss, "):
        variants_of(BEST, names=["luck"])


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_every_part_is_one_of_shapes_hard(part: object) -> None:
    variants, left_out = variants_of(HARD, names=[part.name])  # type: ignore[attr-defined]
    assert len(variants) == 2 and not left_out


def test_worth_by_hand() -> None:
    assert worth_of([0.02]).verdict == "one seed"
    pays = worth_of([0.02, 0.03, 0.04])  # mean 3 points, deviation 1, 4.30 standard errors 2.48
    assert (pays.mean, pays.deviation, pays.verdict) == (pytest.approx(0.03), pytest.approx(0.01), "pays")
    assert worth_of([-0.02, -0.03, -0.04]).verdict == "costs"
    assert worth_of([0.01, 0.02, 0.03]).verdict == "within the spread"
    assert worth_of([0.02, 0.03]).verdict == "within the spread"  # 2.5 points; 12.71 standard errors are 6.4
    assert worth_of([0.02, 0.022]).verdict == "pays"  # 2.1 points, 1.3
    assert worth_of([0.0, 0.0]).verdict == "within the spread"
    assert worth_of([0.01, 0.02] * 8).verdict == "pays"  # of more seeds than the table has


def figures(seed: int, pq: float) -> SeedFigures:
    return SeedFigures(seed=seed, pq=pq, pq_things=pq, pq_stuff=pq)


def test_the_sign_of_a_part_that_is_added() -> None:
    base = Row(name="everything", added=False, overrides=[], seeds=[figures(0, 0.5), figures(1, 0.6)])
    less = base.model_copy(update={"name": "without it", "seeds": [figures(1, 0.5), figures(2, 0.4)]})
    more = base.model_copy(update={"name": "with another", "added": True, "seeds": [figures(0, 0.53)]})
    report = Ablation(config="x", overrides=[], images=4, left_out=[], rows=[base, less, more])
    worths = [report.worth(row) for row in report.rows]
    assert worths[0] is None
    assert worths[1] and worths[1].differences == [pytest.approx(0.1)], "of the seed that both have"
    assert worths[2] and worths[2].differences == [pytest.approx(0.03)]
    console = Console(record=True, width=120)
    console.print(ablation_table(report))
    lines = {line.split("  ")[0].strip(): line.split() for line in console.export_text().splitlines() if line.strip()}
    assert lines["everything"][1:4] == ["55.0", "±", "7.1"]
    assert lines["with another"][-4:] == ["+3.0", "1", "one", "seed"]


def test_a_training_that_fails_is_named(tmp_path: Path) -> None:
    words = r"everything_0: training ended with exit status 2: error: .*missing.yaml: no such .*everything_0.log\)"
    with pytest.raises(InputError, match=words):
        Trainings(1).run(tmp_path / "missing.yaml", tmp_path / "everything_0", "cpu", ())


def test_trainings_are_ended_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None goes on for hours after another has failed, and none begins."""
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/began\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    trainings = Trainings(1)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(trainings.run, tmp_path / "x.yaml", tmp_path / "a", "cpu", ())
        while not (tmp_path / "began").exists() and not running.done():
            time.sleep(0.01)
        trainings.stop()
        with pytest.raises(InputError, match="a: training ended with exit status -15"):
            running.result()
    with pytest.raises(InputError, match="not begun"):
        trainings.run(tmp_path / "x.yaml", tmp_path / "b", "cpu", ())


def test_one_that_fails_ends_all(tmp_path: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise InputError("disk full")

    stopped: list[Trainings] = []
    monkeypatch.setattr(Trainings, "run", fail)
    monkeypatch.setattr(Trainings, "stop", lambda self: stopped.append(self))
    with pytest.raises(InputError, match="disk full"):
        run_demo(tiny_run, tmp_path)
    assert len(stopped) == 1
    assert not (tmp_path / "ablation.json").exists() or json.loads((tmp_path / "ablation.json").read_text())
