"""`upsnet train`: one line for bad input, and every option arrives."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from unittest.mock import Mock

import pytest
from typer.testing import CliRunner

import training.train
from tests.training.tiny_network import settings
from training.launch import ALONE, Machines
from training.step import TrainingError
from upsnet.command_line.command import make_app
from upsnet.datasets.split import Split


def run_command(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(make_app(training.train.main), list(arguments))
    return result.exit_code, result.stderr


@pytest.fixture
def config(shapes: Path, tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(settings(shapes).model_dump_json())  # which is YAML too
    return tmp_path / "tiny.yaml"


def test_command_refuses_bad_input_in_one_line(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(config.parent)
    for arguments, expected in {
        "--config=none.yaml": "none.yaml: no such configuration",
        "--set=schedule.speed=1": "schedule.speed",
        "--set=data.train.json_file=a/b.json": "a/b.json: no such file (data.train.json_file)",
        "--data=a": "a/train.json: no such file (data.train.json_file)",
        "--set=data.val.images=a/b": "a/b: no such folder (data.val.images)",
        "--device=tpu9": "device 'tpu9'",
        "--iterations=0": "schedule.iterations",
        "--set=schedule.lr=.inf": "schedule.lr: Input should be a finite number",
        "--set=loss.panoptic=.nan": "loss.panoptic: Input should be a finite number",
        "--set=model.rpn.anchor_ratios=[0]": "model.rpn.anchor_ratios.0: Input should be greater than or equal to 0.01",
        "--set=model.rpn.anchor_ratios=[]": "model.rpn.anchor_ratios: Tuple should have at least 1 item",
        "--set=model.pixel_std=[1,1,-1]": "model.pixel_std.2: Input should be greater than 0",
        "--processes=0": "--processes 0: give a number from 1 up",
        "--processes=2 --set=schedule.speed=1": "schedule.speed",
        "--classes=new": "--classes new: says what --init takes",
        "--nodes=x": "--nodes x: give how many machines there are, as 2, or from how many to how many, as 1:4",
        "--nodes=0": "--nodes 0: give how many",
        "--nodes=2:1": "--nodes 2:1: give how many",
        "--nodes=1:2:3": "--nodes 1:2:3: give how many",
        "--nodes=2": "--nodes 2: give --rendezvous HOST:PORT too, HOST one of the machines, the same on all",
        "--nodes=2 --rendezvous=a": "--rendezvous a: give HOST:PORT, as node1:29500",
        "--nodes=2 --rendezvous=:29500": "--rendezvous :29500: give HOST:PORT",
        "--nodes=2 --rendezvous=http://a:1": "--rendezvous http://a:1: give HOST:PORT",
        "--nodes=2 --rendezvous=a:70000": "--rendezvous a:70000: give HOST:PORT",
        "--nodes=1:3 --rendezvous=a:1": "--nodes 1:3: with 3 of them schedule.images_per_step 2 cannot be shared",
        "--nodes=1:3 --rendezvous=a:1 --set=schedule.images_per_step=null --set=schedule.images_per_gpu=2": (
            "--nodes 1:3: a number that may change would change the batch; give schedule.images_per_step too, as --set "
            "schedule.images_per_step=12"
        ),
    }.items():
        code, stderr = run_command("--config=tiny.yaml", *arguments.split())
        assert code == 2
        assert expected in stderr
        assert stderr.startswith("error: ")
        assert stderr.count("\n") == 1
    assert os.listdir() == ["tiny.yaml"]


def test_command_passes_everything_on(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = Mock(return_value=signal.SIGTERM)
    monkeypatch.setattr(training.train, "train", train)
    options = ["--set=schedule.lr=0.5", "--iterations=77", "--device=cpu", "--init=start.safetensors", "--classes=new"]
    command = [f"--config={config}", *options]
    for arguments in (command, [*command, "--out=x/y"]):
        code, stderr = run_command(*arguments)
        assert code == 143
        assert "stopped by signal 15" in stderr
    ((given, out, device), options), ((_, named, _), _) = train.call_args_list
    assert options == {"init": Path("start.safetensors"), "classes": "new"}
    assert (given.schedule.lr, given.schedule.iterations, device) == (0.5, 77, "cpu")
    assert (out, named) == (Path("runs/tiny"), Path("x/y"))


def test_data_of_a_folder(config: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = Mock(return_value=0)
    monkeypatch.setattr(training.train, "train", train)
    folder = tmp_path / 'a "b": {c}'  # a name that YAML must not read
    folder.symlink_to(shapes)
    assert run_command(f"--config={config}", f"--data={folder}", "--set=data.val.images=elsewhere") == (0, "")
    ((given, _, _), _) = train.call_args
    assert given.data.train == Split.usual(folder / "train.json")
    assert given.data.val == Split(
        json_file=folder / "val.json", segments=folder / "panoptic_val", images=Path("elsewhere")
    )


def test_several_processes_get_everything_too(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = Mock(return_value=143)
    monkeypatch.setattr(training.train, "launch", launch)
    options = [
        "--set=schedule.lr=0.5",
        "--iterations=77",
        "--device=cpu",
        "--init=a b",
        "--classes=new",
        "--processes=3",
    ]
    assert run_command(f"--config={config}", *options) == (143, "")
    sets = ["--set=schedule.lr=0.5", "--set=schedule.iterations=77", "--set=schedule.images=null"]
    given = [f"--config={config}", "--out=runs/tiny", "--device=cpu", "--init=a b", "--classes=new", *sets]
    launch.assert_called_once_with(3, given, "runs/tiny", ALONE, 0)


def test_several_machines_get_everything_too(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = Mock(return_value=0)
    monkeypatch.setattr(training.train, "launch", launch)
    assert run_command(f"--config={config}", "--nodes=2", "--rendezvous=node1:29500", "--max-restarts=3") == (0, "")
    given = [f"--config={config}", "--out=runs/tiny", "--device=auto"]
    launch.assert_called_once_with(1, given, "runs/tiny", Machines(2, 2, "node1:29500"), 3)
    launch.reset_mock()
    assert run_command(f"--config={config}", "--max-restarts=1", "--out=x") == (0, "")
    launch.assert_called_once_with(1, [given[0], "--out=x", given[2]], "x", ALONE, 1)


def test_training_that_cannot_go_on_ends_in_one_line(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.train, "train", Mock(side_effect=TrainingError("step 6: not finite")))
    assert run_command(f"--config={config}") == (2, "error: step 6: not finite\n")
