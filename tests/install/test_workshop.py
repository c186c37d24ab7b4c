"""`make setup`: the checkout's commands, from any folder. These tests run in the environment that it has made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.install.conftest import ROOT

BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ([BIN / "upsnet", "train", "--help"], "--config"),
        ([BIN / "upsnet", "parity", "--help"], "--runtimes"),
        ([sys.executable, "-m", "upsnet", "export", "--help"], "--checkpoint"),
        ([sys.executable, ROOT / "eval/parity.py", "--help"], "--runtimes"),
    ],
    ids=lambda value: " ".join(Path(word).name for word in value) if isinstance(value, list) else None,
)
def test_commands_from_another_folder(tmp_path: Path, command: list[str | Path], shown: str) -> None:
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and shown in done.stdout, done.stderr
    assert not list(tmp_path.iterdir())


def test_every_folder_is_this_checkouts(tmp_path: Path) -> None:
    names = ["upsnet", "plugins_cuda", "training", "export", "serving", "eval"]
    code = f"import json; print(json.dumps([__import__(name).__file__ for name in {names}]))"
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [Path(file) for file in json.loads(found.stdout)] == [ROOT / name / "__init__.py" for name in names]
