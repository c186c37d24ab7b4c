"""The plugin libraries under test, compiled on first use.

Environment:
- TENSORRT_INCLUDE_DIR: folder of NvInferRuntime.h; without it the tests here skip. TENSORRT_INCLUDE_DIRS: more of them,
  with colons between, that the sources must compile against too.
- UPSNET_OPERATORS: folder with what `make plugins` built; its plugins and harness serve on a GPU (no headers needed).
"""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from torch import Tensor

from plugins_cuda import library
from tests.plugins_cuda.tensorrt.harness import Harness
from tests.plugins_cuda.tensorrt.profile import Profile


def cmake(folder: Path, targets: list[str], *options: str) -> None:
    for command in (
        ["cmake", "-S", str(library.SOURCES), "-B", str(folder), *options],
        ["cmake", "--build", str(folder), "--parallel", str(os.cpu_count()), "--target", *targets],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@functools.cache
def built(device: str) -> tuple[Path, Path]:
    """The harness and the plugin library: around emulated kernels (cpu), or the real one (cuda)."""
    name = "upsnet_plugins" if device == "cuda" else "upsnet_plugins_emulated"
    given = Path(os.environ.get("UPSNET_OPERATORS", "/nowhere"))
    if (given / f"lib{name}.so").is_file():
        return given / "libupsnet_plugin_harness.so", given / f"lib{name}.so"
    headers = os.environ.get("TENSORRT_INCLUDE_DIR")
    if not headers:
        pytest.skip("no TensorRT headers: TENSORRT_INCLUDE_DIR is not set")
    compiler = "CMAKE_CUDA_ARCHITECTURES=native" if device == "cuda" else "CMAKE_CUDA_COMPILER=NOTFOUND"
    folder = library.BUILD.parent / f"plugins_{device}"
    folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):  # two runs of the tests
        cmake(folder, [name, "upsnet_plugin_harness"], f"-DTENSORRT_INCLUDE_DIR={headers}", f"-D{compiler}")
    return folder / "libupsnet_plugin_harness.so", folder / f"lib{name}.so"


@pytest.fixture(scope="session")
def plugin_files() -> tuple[Path, Path]:
    """The harness and a plugin library that needs no GPU."""
    return built("cpu")


@pytest.fixture(scope="session")
def session_harness(plugin_files: tuple[Path, Path]) -> Harness:
    return Harness(*plugin_files)


@pytest.fixture
def harness(session_harness: Harness) -> Harness:
    session_harness.messages()  # what other tests left
    return session_harness


@dataclass(frozen=True)
class Front:
    """A plugin library, and where the tensors lie that its enqueue takes."""

    device: torch.device
    harness: Harness

    def run(
        self,
        name: str,
        attributes: Mapping[str, object],
        inputs: list[Tensor],
        formats: Sequence[str] | None = None,
        profile: Profile | None = None,
    ) -> list[Tensor]:
        return self.harness.run(name, attributes, inputs, formats, profile)


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def front(request: pytest.FixtureRequest) -> Iterator[Front]:
    """Both plugin libraries; inside the test, operators on CPU tensors run the emulated kernels too."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no NVIDIA GPU")
        yield Front(torch.device("cuda"), cuda_harness())
    else:
        with library.emulation():
            yield Front(torch.device("cpu"), request.getfixturevalue("session_harness"))


@functools.cache
def cuda_harness() -> Harness:
    return Harness(*built("cuda"))
