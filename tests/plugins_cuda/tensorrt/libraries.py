"""What is under test here, compiled on first use into build/, and again when a source has changed.

UPSNET_OPERATORS: a folder with what `make plugins` built; its plugins and harness serve instead.
UPSNET_SANITIZE: what is compiled for the CPU gets these sanitizers (`make sanitize`).
"""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

from plugins_cuda import library


def made(device: str, targets: list[str], sanitizers: str = "", headers: str = "") -> Path:
    """The folder with these targets of CMakeLists.txt, made from the sources as they are now."""
    folder = library.BUILD.parent / f"plugins_{device}{'_sanitized' if sanitizers else ''}"
    compiler = "CMAKE_CUDA_ARCHITECTURES=native" if device == "cuda" else "CMAKE_CUDA_COMPILER=NOTFOUND"
    options = [f"-D{compiler}", f"-DUPSNET_SANITIZE={sanitizers}", f"-DTENSORRT_INCLUDE_DIR={headers}"]
    folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):  # two runs of the tests
        for command in (
            ["cmake", "-S", str(library.SOURCES), "-B", str(folder), *options],
            ["cmake", "--build", str(folder), "--parallel", str(os.cpu_count()), "--target", *targets],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return folder


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
    folder = made(device, [name, "upsnet_plugin_harness"], os.environ.get("UPSNET_SANITIZE", ""), headers)
    return folder / "libupsnet_plugin_harness.so", folder / f"lib{name}.so"
