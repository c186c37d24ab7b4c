"""What is taken for the workshop: the checkout's folders, and nobody else's of the same name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from upsnet import workshop
from upsnet.errors import InputError


def test_its_modules_are_found() -> None:
    pytest.importorskip("torch")
    assert workshop.load_module("training.config", "this").__name__ == "training.config"


def test_without_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(workshop, "ROOT", tmp_path)
    with pytest.raises(InputError, match=r"^upsnet train needs the project's checkout, and only the package"):
        workshop.load_module("training.train", "upsnet train")


@pytest.mark.parametrize("name", ["training.py", "training/__init__.py"])
def test_somebody_elses_is_not_run(project_root: Path, tmp_path: Path, name: str) -> None:
    """`python -m` puts the working folder first on the path, and `training` is a common name."""
    if not (project_root / "training").is_dir():
        pytest.skip("needs the checkout")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("raise SystemExit('mine was run')")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(project_root)!r}]; import upsnet; upsnet.main()"
    done = subprocess.run([sys.executable, "-c", code, "train", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: upsnet train needs ") and f"{tmp_path / name} comes first" in done.stderr
