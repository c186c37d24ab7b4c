"""ONNX Runtime's kernels where only the package is installed: compiled with what pip brings and g++, one library for
the oldest and the newest ONNX Runtime; and what is said where there is no compiler."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.install.conftest import Installed
from upsnet.contract import LIBRARY

OLDEST = "1.23"  # pyproject.toml's
BODIES = "function bodies (no C++ compiler was found; install g++, or set CXX)"


@pytest.fixture(scope="module")
def oldest(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    if sys.version_info >= (3, 14):
        pytest.skip(f"onnxruntime {OLDEST} has no wheel for this Python")
    requirements = [f"{wheel}[onnxruntime]", f"onnxruntime=={OLDEST}.*"]
    return Installed(tmp_path_factory.mktemp("oldest"), sys.executable, requirements, constraints=False)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where all of them keep what they compile."""
    return {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}


def without_a_compiler(installed: Installed, cache: Path | str) -> dict[str, str]:
    return {"XDG_CACHE_HOME": str(cache), "PATH": str(installed.folder / "bin")}


def predict(installed: Installed, run: Path, out: str, variables: dict[str, str]) -> tuple[np.ndarray, str, str]:
    """The ids of a photo that the run has learnt, stdout and stderr."""
    photo = sorted((run.parent / "shapes" / "train").iterdir())[0]
    arguments = ("predict", photo, "--model", run / "model.onnx", "--out", out)
    output, errors = installed.run("upsnet", *arguments, variables=variables)
    return np.asarray(Image.open(installed.work / out / "predictions" / f"{photo.stem}.png")), output, errors


def test_compiled_once_and_used(client: Installed, tiny_run: Path, cache: dict[str, str], tmp_path: Path) -> None:
    said, errors = client.run("upsnet", "doctor", variables=cache)
    folder = f"{cache['XDG_CACHE_HOME']}/upsnet-trt/operators"
    assert said.startswith(f"kernels: {LIBRARY}") and f", {folder}/" in said.splitlines()[0]
    assert errors in (
        "",
        f"compiling the operators for onnxruntime (once, into {folder}), a minute or more of one core ...\n",
    )
    ids, output, errors = predict(client, tiny_run, "compiled", cache)
    assert f"kernels: {LIBRARY})" in output and "compiling" not in errors
    gone = without_a_compiler(client, cache["XDG_CACHE_HOME"])
    assert client.run("upsnet", "doctor", variables=gone)[0].startswith(f"kernels: {LIBRARY}")
    bodies, output, errors = predict(client, tiny_run, "bodies", without_a_compiler(client, tmp_path))
    assert f"kernels: {BODIES}" in output
    assert errors.count("the operators run from function bodies, which are slower: no C++ compiler was found") == 1
    assert (bodies > 0).any() and (ids == bodies).mean() > 0.999


def test_the_oldest_onnx_runtime_takes_the_same_library(
    oldest: Installed, client: Installed, tiny_run: Path, cache: dict[str, str]
) -> None:
    client.run("upsnet", "doctor", variables=cache)  # compiled, if that was not done yet
    said, errors = oldest.run("upsnet", "doctor", variables=cache)
    assert said.startswith(f"kernels: {LIBRARY}") and f"onnxruntime: {OLDEST}." in said and not errors
    ids, output, _ = predict(oldest, tiny_run, "compiled", cache)
    assert f"kernels: {LIBRARY})" in output
    bodies, *_ = predict(client, tiny_run, "bodies of the newest", cache | {"UPSNET_KERNELS": "off"})
    assert (bodies > 0).any() and (ids == bodies).mean() > 0.999


def test_no_compiler_is_said_first(client: Installed, tmp_path: Path) -> None:
    said, _ = client.run("upsnet", "doctor", code=1, variables=without_a_compiler(client, tmp_path))
    assert said.splitlines()[0] == f"kernels: {BODIES}"
