"""`upsnet`: one entry to every stage, helpful without importing any, one line for what it refuses."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import training.init
from training.checkpoint import load_model
from upsnet.command_line.command import make_app
from upsnet.command_line.main import COMMANDS


def upsnet_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "upsnet", *arguments], capture_output=True, text=True, check=False)


def test_overview_names_every_command_and_imports_no_stage() -> None:
    code = (
        "import atexit, sys, upsnet; "
        "atexit.register(lambda: print([m for m in ('torch', 'onnx', 'tritonclient', 'numpy') if m in sys.modules])); "
        "upsnet.main()"
    )
    command = [sys.executable, "-c", code, "--help"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "[]"
    for name in ("train", "export", "engine", "serve", "predict", "eval", "parity", "pq", "deploy", "data"):
        assert f" {name} " in output


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_helps(command: str) -> None:
    result = CliRunner(env={"COLUMNS": "100"}).invoke(
        make_app(importlib.import_module(COMMANDS[command].module).main), ["--help"]
    )
    assert result.exit_code == 0 and "Usage" in result.output


def test_every_run_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    named = []
    for name, entry in COMMANDS.items():
        app = make_app(importlib.import_module(entry.module).main)
        if any("--run" in option.opts for option in typer.main.get_command(app).params):
            named.append(name)
            result = CliRunner().invoke(app, ["--run", "nosuch"])
            assert result.exit_code == 2 and result.stderr.count("\n") == 1, name
            assert result.stderr.startswith("error: nosuch: no such run: neither nosuch nor runs/nosuch is here"), name
    assert {"predict", "eval", "parity", "bench", "deploy", "serve", "load-test", "precision-search"} <= {*named}


def test_unknown_command_and_no_command() -> None:
    wrong = upsnet_process("trian")
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and "no command 'trian'" in wrong.stderr
    assert upsnet_process().returncode == 2


def test_commands_of_two_words(shared_data: Path) -> None:
    for arguments in (["data"], ["data", "--help"]):
        group = upsnet_process(*arguments)
        assert group.returncode == (0 if "--help" in arguments else 2)
        shown = group.stdout + group.stderr
        assert " check " in shown and " train " not in shown
    wrong = upsnet_process("data", "chek")
    assert wrong.returncode == 2 and "no command 'data chek'" in wrong.stderr and wrong.stderr.count("\n") == 1
    checked = upsnet_process("data", "check", str(shared_data / "coco_sample"), "--workers", "2")
    assert checked.returncode == 0 and "4 images" in checked.stdout and "0 errors, 0 warnings" in checked.stdout


def test_a_command_of_two_words_beside_the_command_of_its_first() -> None:
    shown = upsnet_process("deploy", "--help")
    assert shown.returncode == 0 and "--run" in shown.stdout
    assert "Beside it: `upsnet deploy stage`, `upsnet deploy promote`" in " ".join(shown.stdout.split())
    assert "Beside it" not in upsnet_process("deploy", "status", "--help").stdout
    wrong = upsnet_process("deploy", "stagge")
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1
    assert "no command 'deploy stagge'; there are deploy, deploy stage, deploy promote, " in wrong.stderr
    ours = upsnet_process("deploy", "status", "--repository", "nowhere")
    assert (ours.returncode, ours.stderr.partition("; ")[0]) == (
        2,
        "error: nowhere is no model repository: it has no upsnet/1",
    )


def test_init_writes_a_checkpoint_that_loads(project_root: Path, tmp_path: Path) -> None:
    table = [{"id": 7, "name": "cat", "isthing": 1}, {"id": 9, "name": "sky", "isthing": 0}]
    (tmp_path / "categories.json").write_text(json.dumps(table))
    out = tmp_path / "last.safetensors"
    arguments = ["--config", str(project_root / "training/configs/shapes.yaml"), "--out", str(out)]
    app = make_app(training.init.main)
    result = CliRunner().invoke(app, [*arguments, "--categories", str(tmp_path / "categories.json")])
    assert result.exit_code == 0, result.output
    model, _, categories, step = load_model(tmp_path / "last.safetensors")
    assert (model.num_stuff, model.num_things, step) == (1, 1, 0) and categories.names == ["sky", "cat"]

    (tmp_path / "categories.json").write_text("{}")
    result = CliRunner().invoke(app, [*arguments, "--categories", str(tmp_path / "categories.json")])
    assert result.exit_code == 2 and "holds no list of categories" in result.stderr


def test_ctrl_c_is_one_line() -> None:
    """Also where output goes to a file, into which no terminal writes ^C."""

    def stop() -> None:
        print("so far")
        raise KeyboardInterrupt

    result = CliRunner().invoke(make_app(stop), [])
    assert (result.exit_code, result.stdout, result.stderr) == (130, "so far\n", "interrupted\n")
