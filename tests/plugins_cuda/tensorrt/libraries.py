"""What is under test here, and the packages of NVIDIA's that it is tested with.

The libraries are compiled on first use into build/, and again when a source has changed.

UPSNET_OPERATORS: a folder with what `make plugins` built; its plugins and harness serve instead.
UPSNET_SANITIZE: what is compiled for the CPU gets these sanitizers (`make sanitize`).
"""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from filelock import FileLock

from plugins_cuda import library

NO_CUDA = "-DCMAKE_CUDA_COMPILER=NOTFOUND"


def need(*modules: str) -> None:
    """Packages of TensorRT-RTX and of TensorRT's lean runtime. The test fails without one where `make setup` brings
    them; elsewhere it skips."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing and (sys.platform, platform.machine()) == ("linux", "x86_64"):
        pytest.fail(f"{', '.join(missing)}: not installed; `make setup` installs it on Linux on x86-64")
    if missing:
        pytest.skip(f"{', '.join(missing)}: NVIDIA has it for Linux on x86-64")


def made(name: str, targets: list[str], *options: str) -> Path:
    """The folder build/plugins_<name> with these targets of CMakeLists.txt, made from the sources as they are now."""
    folder = library.SOURCES.parent / "build" / f"plugins_{name}"
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}  # of `make sanitize`
    folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):  # two runs of the tests
        for command in (
            ["cmake", "-S", str(library.SOURCES), "-B", str(folder), *options],
            ["cmake", "--build", str(folder), "--parallel", str(os.cpu_count()), "--target", *targets],
        ):
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return folder


def for_the_cpu(*targets: str) -> Path:
    """The folder with these targets, with the sanitizers of `make sanitize` where it is that."""
    sanitizers = os.environ.get("UPSNET_SANITIZE", "")
    options = [NO_CUDA, f"-DUPSNET_SANITIZE={sanitizers}"]
    return made("cpu_sanitized" if sanitizers else "cpu", list(targets), *options)


@functools.cache
def built(device: str) -> tuple[Path, Path]:
    """The harness and the plugin library: around emulated kernels (cpu), or the real one (cuda)."""
    plugins = "upsnet_plugins" if device == "cuda" else "upsnet_plugins_emulated"
    folder = Path(os.environ.get("UPSNET_OPERATORS", "/nowhere"))
    if not (folder / f"lib{plugins}.so").is_file():
        targets = [plugins, "upsnet_plugin_harness"]
        native = "-DCMAKE_CUDA_ARCHITECTURES=native"
        folder = made("cuda", targets, native) if device == "cuda" else for_the_cpu(*targets)
    return folder / "libupsnet_plugin_harness.so", folder / f"lib{plugins}.so"


@functools.cache
def variant(name: str, *options: str) -> Path:
    """Another plugin library around emulated kernels, made with these options of CMake. Its kernels are not what is
    tested: quickly compiled, slow."""
    folder = made(name, ["upsnet_plugins_emulated"], NO_CUDA, "-DCMAKE_BUILD_TYPE=Debug", *options)
    return folder / "libupsnet_plugins_emulated.so"
