"""The custom operators in the oldest ONNX Runtime that pyproject.toml takes; every other test has the newest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OLDEST = re.findall(r'"onnxruntime>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[0]
TESTS = "test_sessions.py", "test_abi.py", "test_nodes.py"


@pytest.mark.skipif(sys.version_info >= (3, 14), reason=f"ONNX Runtime {OLDEST} has no wheel for this Python")
def test_the_oldest_runtime(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--target", tmp_path, f"onnxruntime=={OLDEST}.*"], check=True)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    version = [sys.executable, "-c", "import onnxruntime; print(onnxruntime.__version__)"]
    assert subprocess.check_output(version, text=True, env=environment).startswith(OLDEST)
    tests = [f"tests/plugins_cuda/onnxruntime/{name}" for name in TESTS]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, "-k", "not noticed"],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
