"""The training loop on a stand-in network: interrupted runs, refusals, several processes. One test trains the real one.

Run as a script it trains the stand-in in processes that can be killed: see `script`.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn
from typer.testing import CliRunner

import training.evaluation
import training.loop
import training.train
from panoptic.categories import Categories
from panoptic.cli import make_app
from panoptic.errors import InputError
from training.checkpoint import load, load_model
from training.config import Config, load_config, parse_config
from training.data.batch import IGNORE, Batch
from training.data.shapes import write_shapes
from training.distributed import Process
from training.log import SPEED
from training.loop import Run, train
from training.signals import stop_signals
from training.step import TrainingError, step_seed

ROOT = Path(__file__).resolve().parents[2]


class TinyNetwork(nn.Module):
    """Semantic segmentation by one convolution; every stuff class is one row of the segments."""

    def __init__(self, config: Config, categories: Categories) -> None:
        super().__init__()
        self.num_stuff = categories.num_stuff
        self.rows = categories.num_stuff + config.model.panoptic.max_detections
        self.conv = nn.Conv2d(3, len(categories), 5, padding=2)

    def logits(self, images: Tensor) -> Tensor:
        return self.conv(images.permute(0, 3, 1, 2) / 255)

    def forward(self, images: Tensor, sizes: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        stuff = self.logits(images)[:, : self.num_stuff].argmax(1)
        segments = torch.zeros(len(images), self.rows, 7)
        segments[..., 0] = torch.arange(self.rows).clamp(max=self.num_stuff - 1)
        return (stuff + 1).byte(), segments, torch.full((len(images),), self.num_stuff, dtype=torch.int32)


class TinyLosses(nn.Module):
    """Cross-entropy, a mean over the images, and optionally a term that depends on the random state.

    `accident` is called in every forward with the number of forwards so far and may alter the losses.
    """

    def __init__(self, model: TinyNetwork, noise: bool, accident: Any = None) -> None:
        super().__init__()
        self.model, self.noise, self.accident, self.calls = model, noise, accident, 0

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        self.calls += 1
        errors = F.cross_entropy(self.model.logits(batch.images), batch.semantic.long(), ignore_index=IGNORE, reduction="none")
        labelled = (batch.semantic != IGNORE).flatten(1).sum(1)
        losses = {"semantic": (errors.flatten(1).sum(1) / labelled).mean()}
        if self.noise:
            losses["noise"] = 0.1 * torch.rand(()) * self.model.conv.bias.square().sum()
        return self.accident(self.calls, losses, self.model) if self.accident else losses


def builder(noise: bool = True, accident: Any = None) -> Any:
    def build(config: Config, categories: Categories) -> tuple[nn.Module, nn.Module]:
        model = TinyNetwork(config, categories)
        return model, TinyLosses(model, noise, accident)

    return build


def sends_signal(number: int, call: int) -> Any:
    def accident(calls: int, losses: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        if calls == call:
            os.kill(os.getpid(), number)
        return losses

    return accident


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    return write_shapes(folder, {"train": 6, "val": 3}, sizes=[(64, 64), (64, 96)], progress=False)


def settings(shapes: Path, *, model: dict | None = None, **schedule: Any) -> Config:
    def split(name: str) -> dict[str, str]:
        return {
            "json_file": str(shapes / f"{name}.json"),
            "segments": str(shapes / f"panoptic_{name}"),
            "images": str(shapes / name),
        }

    defaults = {"iterations": 12, "images_per_step": 2, "lr": 0.1, "warmup": 4, "log_every": 1, "checkpoint_every": 4}
    return parse_config(
        {
            "name": "tiny",
            "seed": 3,
            "model": model or {},
            "data": {
                "train": split("train"),
                "val": split("val"),
                "resize": {"short_side": 64, "max_side": 96},
                "augment": {"flip": 0.5, "color": 0.3, "scale": [0.8, 1.2]},
            },
            "schedule": defaults | {"evaluate_every": 6} | schedule,
        },
        "test",
    )


@pytest.fixture(autouse=True)
def panoptic_quality_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in has no instances for AP, nor a semantic map."""
    monkeypatch.setattr(training.evaluation, "METRICS", ("pq",))


def metrics(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in SPEED} for line in lines]


def assert_same_run(out: Path, reference: Path) -> None:
    """The same metrics and the same weights, bit for bit."""
    assert metrics(out) == metrics(reference)
    for name in ("last.safetensors", "best.safetensors"):
        ours, theirs = load(out / name), load(reference / name)
        assert (ours.step, ours.best_pq) == (theirs.step, theirs.best_pq)
        assert all(torch.equal(ours.model[key], value) for key, value in theirs.model.items())


@pytest.fixture(scope="module")
def unbroken(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "unbroken"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.evaluation, "METRICS", ("pq",))
        assert train(settings(shapes), out, "cpu", builder()) == 0
    return out


def test_the_folder_of_a_run(unbroken: Path, shapes: Path) -> None:
    files = {"config.yaml", "plan.json", "versions.json", "metrics.jsonl", "last.safetensors", "best.safetensors", "tb"}
    assert files == set(os.listdir(unbroken))
    assert load_config(unbroken / "config.yaml") == settings(shapes)
    assert list((unbroken / "tb").glob("events.*"))
    lines = metrics(unbroken)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 13))
    assert all(line["loss"] == pytest.approx(line["semantic"] + line["noise"], rel=1e-6) for line in steps)
    assert [line["lr"] for line in steps[:5]] == pytest.approx([0.01, 0.0325, 0.055, 0.0775, 0.1])
    assert len({line["noise"] for line in steps}) == 12
    evaluations = [line for line in lines if "pq" in line]
    assert [line["step"] for line in evaluations] == [6, 12]
    assert set(evaluations[0]) == {"step", "pq", "pq_things", "pq_stuff"}
    last, best = load(unbroken / "last.safetensors"), load(unbroken / "best.safetensors")
    assert last.step == 12
    assert last.best_pq == best.best_pq == max(line["pq"] for line in evaluations)
    assert best.optimizer == {}


def test_best_checkpoint_is_that_of_the_best_evaluation(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qualities = iter([0.3, 0.5, None, 0.4])
    monkeypatch.setattr(training.loop, "quality", lambda *_: {"pq": next(qualities)})
    assert train(settings(shapes, evaluate_every=3), tmp_path, "cpu", builder()) == 0
    assert [line["pq"] for line in metrics(tmp_path) if "pq" in line] == [0.3, 0.5, None, 0.4]
    best = load(tmp_path / "best.safetensors")
    assert (best.step, best.best_pq, load(tmp_path / "last.safetensors").best_pq) == (6, 0.5, 0.5)


def test_learns(shapes: Path, tmp_path: Path) -> None:
    config = settings(shapes, iterations=20, images_per_step=6, evaluate_every=0, log_every=19, warmup=0, lr=0.5)
    assert train(config, tmp_path, "cpu", builder(noise=False)) == 0
    losses = [line["loss"] for line in metrics(tmp_path)]
    assert len(losses) == 2  # step 19, and the last
    assert losses[-1] < 0.85 * math.log(8)
    assert not (tmp_path / "best.safetensors").exists()


@pytest.mark.parametrize("call", [1, 4, 6, 7])
def test_stopped_by_sigterm_goes_on_as_if_nothing_had_been(
    unbroken: Path, shapes: Path, tmp_path: Path, call: int
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert train(settings(shapes), tmp_path, "cpu", builder(accident=sends_signal(signal.SIGTERM, call))) == 15
    assert signal.getsignal(signal.SIGTERM) is before
    assert load(tmp_path / "last.safetensors").step == call
    torch.manual_seed(99)  # the outer random state must not matter
    assert train(settings(shapes), tmp_path, "cpu", builder()) == 0
    assert_same_run(tmp_path, unbroken)


def script(config: Config, folder: Path, *stages: list[dict[str, str]]) -> list[list[int]]:
    """Train in folder/run, stage after stage, in processes of their own; a stage has a process for each environment.

    Returns the wait status of each process.
    """
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, __file__, str(folder / "tiny.yaml"), str(folder / "run"), json.dumps(stages)]
    environment = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, timeout=120, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def test_killed_twice_goes_on_as_if_nothing_had_been(unbroken: Path, shapes: Path, tmp_path: Path) -> None:
    """SIGKILL in step 8 (last checkpoint: 6), then in step 9, right after the checkpoint of step 8."""
    out = tmp_path / "run"
    statuses = script(settings(shapes), tmp_path, [{"TINY_KILL_AT": "8"}], [{"TINY_KILL_AT": "3"}])
    assert statuses == [[signal.SIGKILL], [signal.SIGKILL]]
    assert load(out / "last.safetensors").step == 8
    with (out / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 9, "loss": 0.5}\n{"step": 10, "lo')  # written, and half written, after the checkpoint
    (out / ".last.0123abcd.safetensors").write_bytes(b"half a checkpoint")
    assert train(settings(shapes), out, "cpu", builder()) == 0
    assert_same_run(out, unbroken)
    assert not list(out.glob(".*"))


def test_killed_before_the_first_checkpoint_starts_anew(unbroken: Path, shapes: Path, tmp_path: Path) -> None:
    def fails(calls: int, losses: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        if calls == 3:
            raise MemoryError
        return losses

    with pytest.raises(MemoryError):
        train(settings(shapes), tmp_path, "cpu", builder(accident=fails))
    assert len(metrics(tmp_path)) == 2
    assert not (tmp_path / "last.safetensors").exists()
    assert train(settings(shapes), tmp_path, "cpu", builder()) == 0
    assert_same_run(tmp_path, unbroken)


def test_workers_make_no_difference(unbroken: Path, shapes: Path, tmp_path: Path) -> None:
    config = settings(shapes, iterations=12)
    config = config.model_copy(update={"data": config.data.model_copy(update={"workers": 1})})
    assert train(config, tmp_path, "cpu", builder()) == 0
    assert metrics(tmp_path) == metrics(unbroken)


def test_finished_run_says_so_and_more_iterations_continue_it(
    unbroken: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(settings(shapes, iterations=8), tmp_path, "cpu", builder()) == 0
    before = (tmp_path / "last.safetensors").read_bytes()
    assert train(settings(shapes, iterations=8), tmp_path, "cpu", builder()) == 0
    assert "finished already at step 8" in capsys.readouterr().out
    assert (tmp_path / "last.safetensors").read_bytes() == before
    assert train(settings(shapes), tmp_path, "cpu", builder()) == 0
    losses = [[line for line in metrics(out) if "loss" in line] for out in (tmp_path, unbroken)]
    assert losses[0] == losses[1]


def test_another_configuration_is_refused_with_every_key(shapes: Path, tmp_path: Path) -> None:
    train(settings(shapes, iterations=1), tmp_path, "cpu", builder())
    before = (tmp_path / "last.safetensors").read_bytes()
    other = settings(shapes, model={"fpn": {"channels": 64}}, lr=0.2, clip_norm=1.0, iterations=20)
    with pytest.raises(InputError) as caught:
        train(other, tmp_path, "cpu", builder())
    message = str(caught.value)
    for expected in (
        "last.safetensors",
        "model.fpn.channels (256 against 64)",
        "schedule.lr (0.1 against 0.2)",
        "schedule.clip_norm (None against 1.0)",
        "--out",
    ):
        assert expected in message
    assert "iterations" not in message
    assert "\n" not in message
    assert (tmp_path / "last.safetensors").read_bytes() == before


def test_checkpoint_without_optimizer_is_no_place_to_go_on_from(shapes: Path, tmp_path: Path) -> None:
    train(settings(shapes, iterations=1, evaluate_every=1), tmp_path, "cpu", builder())
    (tmp_path / "best.safetensors").rename(tmp_path / "last.safetensors")
    with pytest.raises(InputError, match="no optimizer state"):
        train(settings(shapes, iterations=2, evaluate_every=1), tmp_path, "cpu", builder())


def nan_loss(losses: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    return losses | {"semantic": losses["semantic"] * math.nan}


def opposite_infinities(losses: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    return losses | {"a": losses["semantic"] / 0, "b": -losses["semantic"] / 0}


def nan_gradient(losses: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    return losses | {"root": (model.conv.weight * 0).sqrt().sum()}


@pytest.mark.parametrize("fault", [nan_loss, opposite_infinities, nan_gradient])
def test_non_finite_numbers_stop_the_run(shapes: Path, tmp_path: Path, fault: Any) -> None:
    good: dict[str, Any] = {}

    def accident(calls: int, losses: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        if calls < 6:
            return losses
        good.update({path.name: path.read_bytes() for path in tmp_path.glob("*.*")})
        return fault(losses, model)

    with pytest.raises(TrainingError) as caught:
        train(settings(shapes), tmp_path, "cpu", builder(accident=accident))
    message = str(caught.value)
    assert message.startswith("step 6: not finite: loss ")
    assert "\n" not in message
    assert "semantic" in message
    assert "noise" in message
    assert re.search(r"images \d+, \d+;", message)
    assert load(tmp_path / "last.safetensors").step == 4
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.*")} == good


def test_non_finite_weights_are_not_saved(shapes: Path, tmp_path: Path) -> None:
    def accident(calls: int, losses: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        if calls == 8:
            model.register_buffer("statistic", torch.tensor([1.0, math.inf]))
        return losses

    with pytest.raises(TrainingError, match=r"step 8: weights not finite: statistic; last\.safetensors is from before"):
        train(settings(shapes), tmp_path, "cpu", builder(accident=accident))
    assert load(tmp_path / "last.safetensors").step == 6


def test_clipping_bounds_the_step(shapes: Path, tmp_path: Path) -> None:
    """SGD without momentum and decay moves the weights by exactly lr * clip_norm where the gradient is longer."""
    config = settings(shapes, iterations=1, clip_norm=1e-3, momentum=0.0, weight_decay=0.0, lr=1.0, warmup=0)
    torch.manual_seed(config.seed)
    start = TinyNetwork(config, Categories.from_coco(json.loads((shapes / "train.json").read_text())["categories"]))
    train(config, tmp_path, "cpu", builder())
    end = load(tmp_path / "last.safetensors").model
    weight, bias = ((end[f"conv.{n}"] - getattr(start.conv, n)).norm().item() for n in ("weight", "bias"))
    assert math.hypot(weight, bias / 2) == pytest.approx(1e-3, rel=1e-2)  # biases learn at twice the rate


def test_two_processes_learn_what_one_does(shapes: Path, tmp_path: Path) -> None:
    """Two processes with the environment that torchrun gives them, over gloo."""
    config = settings(shapes, iterations=4, images_per_step=4, evaluate_every=4)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    torchrun = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TINY_NOISE": "0"}
    ranks = [torchrun | {"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    assert script(config, tmp_path, ranks) == [[0, 0]]
    assert train(config, tmp_path / "one", "cpu", builder(noise=False)) == 0
    two, one = metrics(tmp_path / "run"), metrics(tmp_path / "one")
    assert [line["step"] for line in two] == [1, 2, 3, 4, 4]
    for line, expected in zip(two, one, strict=True):
        assert line == pytest.approx(expected, rel=1e-5)


def test_images_that_cannot_be_shared(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="images_per_step 2 cannot be shared equally by 3 processes"):
        Run(settings(shapes), tmp_path, Process(0, 3, torch.device("cpu")), None, builder())


def test_validation_set_of_other_categories(shapes: Path, tmp_path: Path) -> None:
    content = json.loads((shapes / "val.json").read_text())
    content["categories"][0]["name"] = "ring"
    (tmp_path / "val.json").write_text(json.dumps(content))
    config = settings(shapes)
    val = config.data.val.model_copy(update={"json_file": tmp_path / "val.json"})
    config = config.model_copy(update={"data": config.data.model_copy(update={"val": val})})
    with pytest.raises(InputError, match="ring"):
        train(config, tmp_path / "run", "cpu", builder())
    assert not (tmp_path / "run").exists()


def test_a_second_signal_is_not_held_back() -> None:
    with stop_signals() as received:
        os.kill(os.getpid(), signal.SIGINT)
        assert received == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_step_seeds_differ() -> None:
    seeds = {step_seed(seed, step, rank) for seed in (0, 1, 2) for step in (0, 1, 999_999) for rank in (0, 1, 1023)}
    assert len(seeds) == 27
    assert all(0 <= seed < 1 << 63 for seed in seeds)


# The command


def run_command(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(make_app(training.train.main), list(arguments))
    return result.exit_code, result.stderr


def test_command_refuses_bad_input_in_one_line(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings(shapes).model_dump(mode="json")))
    for arguments, expected in {
        ("--config", "none.yaml"): "none.yaml: no such configuration",
        ("--config", "tiny.yaml", "--set", "schedule.speed=1"): "schedule.speed",
        (
            "--config",
            "tiny.yaml",
            "--set",
            "data.train.json_file=a/b.json",
        ): "a/b.json: no such file (data.train.json_file)",
        ("--config", "tiny.yaml", "--set", "data.val.images=a/b"): "a/b: no such folder (data.val.images)",
        ("--config", "tiny.yaml", "--device", "tpu9"): "device 'tpu9'",
        ("--config", "tiny.yaml", "--iterations", "0"): "schedule.iterations",
    }.items():
        code, stderr = run_command(*arguments)
        assert code == 2
        assert expected in stderr
        assert stderr.startswith("error: ")
        assert stderr.count("\n") == 1
    assert os.listdir(tmp_path) == ["tiny.yaml"]


def test_command_passes_everything_on(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    monkeypatch.setattr(training.train, "train", lambda *given, **options: called.append((given, options)) or signal.SIGTERM)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings(shapes).model_dump(mode="json")))
    command = (
        "--config",
        str(tmp_path / "tiny.yaml"),
        "--set",
        "schedule.lr=0.5",
        "--iterations",
        "77",
        "--device",
        "cpu",
        "--init",
        "start.safetensors",
    )
    for arguments in (command, (*command, "--out", "x/y")):
        code, stderr = run_command(*arguments)
        assert code == 143
        assert "stopped by signal 15" in stderr
    ((config, out, device), options), ((_, named, _), _) = called
    assert options == {"init": Path("start.safetensors")}
    assert (config.schedule.lr, config.schedule.iterations, device) == (0.5, 77, "cpu")
    assert (out, named) == (Path("runs/tiny"), Path("x/y"))


# The real network

SMALL = {
    "backbone": {"stem": [4, 8], "widths": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "expansion": 2},
    "fpn": {"channels": 16},
    "rpn": {"channels": 16, "anchor_scale": 4.0, "train_top_n": 50, "test_top_n": 30, "samples": 32},
    "box_head": {"hidden": 16, "samples": 16},
    "mask_head": {"channels": 16, "layers": 1},
    "semantic_head": {"channels": [16]},
    "panoptic": {"max_detections": 8, "stuff_area_limit": 16},
}


def test_the_real_network_resumes_bit_for_bit(shapes: Path, tmp_path: Path) -> None:
    config = settings(shapes, model=SMALL, optimizer="adamw", lr=0.001, clip_norm=5.0, iterations=4, evaluate_every=2)
    assert train(config, tmp_path / "unbroken", "cpu") == 0
    # the same first half, cut off after the checkpoint of step 2 by a schedule that is then raised
    first = config.model_copy(update={"schedule": config.schedule.model_copy(update={"iterations": 2})})
    assert train(first, tmp_path / "resumed", "cpu") == 0
    assert train(config, tmp_path / "resumed", "cpu") == 0
    assert_same_run(tmp_path / "resumed", tmp_path / "unbroken")
    assert set(metrics(tmp_path / "resumed")[0]) > {"loss", "rpn_cls", "rcnn_box", "mask", "semantic", "panoptic"}
    model, *_ = load_model(tmp_path / "resumed" / "best.safetensors", config)
    assert sum(p.numel() for p in model.parameters()) > 10_000


def forked(config: str, out: str, environment: dict[str, str]) -> int:
    """Train the stand-in in a child of this process; returns its process id."""
    if child := os.fork():
        return child
    os.environ.update(environment)
    kill_at = int(environment.get("TINY_KILL_AT", "0"))
    accident = sends_signal(signal.SIGKILL, kill_at) if kill_at else None
    os._exit(
        train(load_config(Path(config)), Path(out), "cpu", builder(environment.get("TINY_NOISE") != "0", accident))
    )


if __name__ == "__main__":
    training.evaluation.METRICS = ("pq",)
    statuses = []
    for stage in json.loads(sys.argv[3]):
        children = [forked(sys.argv[1], sys.argv[2], environment) for environment in stage]
        statuses.append([os.waitpid(child, 0)[1] for child in children])
    print(json.dumps(statuses))
