"""The training benchmark runs at a tiny size; its turns, its stopwatch and what torchvision is given are fair."""

from __future__ import annotations

import json
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from training.benchmark.__main__ import configure, main
from training.benchmark.loading import TURNS, packed
from training.benchmark.parts import REST, Stopwatch
from training.benchmark.steps import TorchvisionStep, feed, take_turns, warm_up
from training.benchmark.synthetic import write_panoptic_set
from training.data.batch import collate_train
from training.data.coco_panoptic import PanopticDataset
from upsnet.command_line.command import make_app
from upsnet.datasets.doctor.check import main as check
from upsnet.geometry import ResizeRule

DEMO = Path(__file__).resolve().parents[2] / "training/configs/shapes.yaml"
CPU = torch.device("cpu")


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(make_app(main), ["--device", "cpu", "--config", str(DEMO), *arguments])


def test_steps_against_torchvision(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    size = ["--size", "64x96", "--images-per-gpu", "1", "--steps", "1", "--workers", "0"]
    result = bench(*size, "--parts", "--out", str(out))
    assert result.exit_code == 0, result.output
    written = json.loads(out.read_text())
    assert [row["name"] for row in written["steps"]] == ["upsnet-trt", "torchvision Mask R-CNN R50"]
    ours, theirs = (row["images_per_s"] for row in written["steps"])
    assert 0 < written["ratio"] == pytest.approx(ours / theirs)
    assert math.isfinite(written["ratio"]) and written["compiled_ratio"] is None
    assert all(row["first_s"] > 0 for row in written["steps"])
    assert written["batch_shapes"] in ([[1, 64, 96, 3]], [[1, 96, 64, 3]])
    assert written["goal"] is None  # it is one for GPUs
    assert written["machine"]["threads"] == torch.get_num_threads()
    assert written["settings"]["images"] == 1
    assert 0 <= written["fed"]["waiting_share"] < 1
    parts = written["parts"]
    assert {"backbone", "backward", "optimizer", "mask head", "assignment", "panoptic loss"} <= parts.keys()
    assert all(seconds >= 0 for seconds in parts.values())
    assert "ratio" in result.output
    assert "waiting for data" in result.output


def test_loader_alone(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    size = ["--size", "64x96", "--images-per-gpu", "2", "--steps", "3"]
    result = bench(*size, "--loader", "--workers", "0", "1", "--out", str(out))
    assert result.exit_code == 0, result.output
    written = json.loads(out.read_text())
    rows, parts = written["loader"], written["core_ms"]
    assert {"photo: read, decoded", "photo resized", "truth", "sent to the loop"} <= parts.keys()
    assert all(ms >= 0 for ms in parts.values()) and "of each worker" in result.output
    assert [(row["workers"], row["images"]) for row in rows] == [(0, 6), (1, 6)]
    assert all(row["images_per_s"] == pytest.approx(6 / row["seconds"]) for row in rows)


def test_folders_against_shards(tmp_path: Path) -> None:
    """The same images of both, by turns: an odd number of them, whose medians make the ratio."""
    out = tmp_path / "bench.json"
    size = ["--size", "64x96", "--images-per-gpu", "2", "--steps", "1"]
    result = bench(*size, "--loader", "--shards", "--workers", "0", "--out", str(out))
    assert result.exit_code == 0, result.output
    (row,) = json.loads(out.read_text())["shards"]
    assert row["workers"] == 0 and len(row["folders"]) == len(row["shards"]) == TURNS
    assert row["ratio"] == pytest.approx(sorted(row["shards"])[TURNS // 2] / sorted(row["folders"])[TURNS // 2])
    middle = {key: sorted(row[key])[TURNS // 2] for key in ("folders_ms", "shards_ms")}
    assert row["ratio_core"] == pytest.approx(middle["folders_ms"] / middle["shards_ms"])
    assert row["ratio_read"] > 0 and "read a second of a core, not decoded" in result.output
    dataset = PanopticDataset(write_panoptic_set(tmp_path, 3, (96, 128)), ResizeRule(short_side=96, max_side=128))
    other = packed(dataset, tmp_path / "shards")
    assert other.image_ids == dataset.image_ids
    assert all(torch.equal(dataset[index]["image"], other[index]["image"]) for index in range(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shards"], "--shards compares loaders: give --loader too"),
        (["--size", "800"], "--size 800: give HEIGHTxWIDTH"),
        (["--data", "--size", "96x128"], "--size is for made-up photos"),
        (["--parts", "--set", "compute.compile=true"], "compute.compile=false"),
        (["--workers", "1", "2"], "--loader alone"),
    ],
)
def test_bad_requests_are_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = bench(*arguments, "--out", str(tmp_path / "bench.json"))
    assert result.exit_code == 2
    assert message in result.output.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_the_doctor_finds_the_made_up_data_sound(tmp_path: Path) -> None:
    made = write_panoptic_set(tmp_path, 3, (96, 128))
    folders = ["--gt-folder", str(made.segments), "--images", str(made.images)]
    result = CliRunner().invoke(make_app(check), [str(made.json_file), *folders, "--workers", "1"])
    assert result.exit_code == 0, result.output
    assert "0 errors, 133 warnings" in result.output, "of the 133 categories, none has a colour"


class Recorder:
    """A contender that writes down what it is asked to do."""

    images = 2

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def prepare(self, batch: Any) -> str:
        return f"{self.name}{batch}"

    def step(self, prepared: str) -> None:
        self.log.append(prepared)

    def finish(self) -> None:
        self.log.append("|")


def test_turns_alternate_and_go_through_the_batches() -> None:
    log: list[str] = []
    batches: Any = [0, 1, 2]
    warm = [warm_up(partial(Recorder, name, log), batches, CPU) for name in "ab"]
    assert "".join(log) == "a0|b0|"
    log.clear()
    timed = take_turns(warm, 12, CPU)
    # Five turns of 2, 2, 3, 2, 3 steps.
    assert "".join(log) == "a0a1|b0b1|a2a0|b2b0|a1a2a0|b1b2b0|a1a2|b1b2|a0a1a2|b0b1b2|"
    assert [row.name for row in timed] == ["a", "b"]
    assert all(row.images_per_s == 2 / sorted(row.seconds)[2] for row in timed), "the median of the turns"
    assert all((len(row.seconds), row.memory_bytes) == (5, None) for row in timed)


def test_feeding_counts_what_the_loader_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def loader() -> Any:
        for _ in range(4):
            clock[0] += 1.0
            yield type("Batch", (), {"images": [0, 0]})

    class Slow(Recorder):
        def step(self, prepared: str) -> None:
            clock[0] += 3.0

    rate, waiting = feed(Slow("s", []), loader(), CPU)
    assert rate == pytest.approx(2 * 3 / (3 * 4.0))  # the first batch does not count
    assert waiting == pytest.approx(0.25)


def test_torchvision_gets_the_truth_of_the_batch(tmp_path: Path) -> None:
    made = write_panoptic_set(tmp_path, 3, (96, 128))
    dataset = PanopticDataset(made, ResizeRule(short_side=96, max_side=128))
    batch = collate_train([dataset[0], dataset[2]])
    config = configure(DEMO, [], 2, None, None)
    theirs = TorchvisionStep(80, config, CPU, channels_last=False)
    for i, (image, target) in enumerate(theirs.prepare(batch)):
        sample = dataset[(0, 2)[i]]
        assert torch.equal(image, sample["image"])  # without the padding
        assert torch.equal(target["labels"], sample["labels"] + 1)
        assert torch.equal(target["boxes"], sample["boxes"])
        assert torch.equal(target["masks"].sum(0) > 0, sample["instances"] > 0)
        for mask, (x1, y1, x2, y2) in zip(target["masks"], target["boxes"].int().tolist(), strict=True):
            assert mask[y1:y2, x1:x2].sum() == mask.sum() > 0
    frozen = {name.split(".")[2] for name, p in theirs.model.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "layer1"}  # stem and res2


def test_stopwatch_takes_out_what_is_called_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    class Work:
        def outer(self) -> str:
            clock[0] += 1
            self.inner()
            clock[0] += 2
            return "done"

        def inner(self) -> None:
            clock[0] += 10

    work, watch = Work(), Stopwatch(CPU)
    with watch.part(REST), watch.watch(work, "outer", "outer"), watch.watch(work, "inner", "inner"):
        clock[0] += 100
        assert work.outer() == "done"
        work.inner()
    assert watch.seconds() == {REST: 100, "outer": 3, "inner": 20}
    assert not vars(work)  # the methods are the class's own again
