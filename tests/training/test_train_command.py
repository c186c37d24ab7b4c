"""`upsnet train`: one line for bad input, and every option arrives."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import training.train
from tests.training.standin import settings
from upsnet.command_line.command import make_app


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
        ("--config", "tiny.yaml", "--processes", "0"): "--processes 0: give a number from 1 up",
        ("--config", "tiny.yaml", "--processes", "2", "--set", "schedule.speed=1"): "schedule.speed",
    }.items():
        code, stderr = run_command(*arguments)
        assert code == 2
        assert expected in stderr
        assert stderr.startswith("error: ")
        assert stderr.count("\n") == 1
    assert os.listdir(tmp_path) == ["tiny.yaml"]


def test_command_passes_everything_on(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    monkeypatch.setattr(training.train, "train", lambda *given, **more: called.append((given, more)) or signal.SIGTERM)
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


def test_several_processes_get_everything_too(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    monkeypatch.setattr(training.train, "launch", lambda *given: called.append(given) or 143)
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(settings(shapes).model_dump(mode="json")))
    options = ["--set=schedule.lr=0.5", "--iterations=77", "--device=cpu", "--init=a b", "--processes=3"]
    assert run_command(f"--config={config}", *options) == (143, "")
    sets = ["--set=schedule.lr=0.5", "--set=schedule.iterations=77", "--set=schedule.images=null"]
    assert called == [(3, [f"--config={config}", "--out=runs/tiny", "--device=cpu", "--init=a b", *sets])]
