"""TensorRT's packages are missing where NVIDIA has none, and nowhere else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.plugins_cuda.tensorrt import libraries


@pytest.mark.parametrize(
    ("machine", "outcome"), [("x86_64", pytest.fail.Exception), ("aarch64", pytest.skip.Exception)]
)
def test_a_package_that_setup_installs_must_be_there(
    monkeypatch: pytest.MonkeyPatch, machine: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setattr(libraries.sys, "platform", "linux")
    monkeypatch.setattr(libraries.platform, "machine", lambda: machine)
    libraries.need("torch")
    with pytest.raises(outcome, match=r"^tensorrt_of_nobody: .* Linux on x86-64$"):
        libraries.need("torch", "tensorrt_of_nobody")


def test_there_is_one_way_to_miss_them(project_root: Path) -> None:
    """A test that looked for them by itself could skip in silence."""
    looking = re.compile(r"find_spec\(.*is None|skip\w*\(.*(tensorrt_|TensorRT-RTX)")
    tests = [path for folder in ("plugins_cuda", "export") for path in (project_root / "tests" / folder).rglob("*.py")]
    assert [path.name for path in tests if looking.search(path.read_text())] == ["libraries.py"]
