"""What is under test here, compiled on first use into build/, and again when a source has changed.

UPSNET_OPERATORS: a folder with what `make plugins` built; its plugins and harness serve instead.
UPSNET_SANITIZE: what is compiled for the CPU gets these sanitizers (`make sanitize`).
"""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

from filelock import FileLock

from plugins_cuda import library

NO_CUDA = "-DCMAKE_CUDA_COMPILER=NOTFOUND"


def made(name: str, targets: list[str], *options: str) -> Path:
    """The folder build/plugins_<name> with these targets of CMakeLists.txt, made from the sources as they are now."""
    folder = library.BUILD.parent / f"plugins_{name}"
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # of `make sanitize`
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
    if not (folder / f"lib{plugins}.so").is_file() and device == "cuda":
        folder = made("cuda", [plugins, "upsnet_plugin_harness"], "-DCMAKE_CUDA_ARCHITECTURES=native")
    elif not (folder / f"lib{plugins}.so").is_file():
        folder = for_the_cpu(plugins, "upsnet_plugin_harness")
    return folder / "libupsnet_plugin_harness.so", folder / f"lib{plugins}.so"


@functools.cache
def variant(name: str, *options: str) -> Path:
    """Another plugin library around emulated kernels, made with these options of CMake. Its kernels are not what is
    tested: quickly compiled, slow."""
    folder = made(name, ["upsnet_plugins_emulated"], NO_CUDA, "-DCMAKE_BUILD_TYPE=Debug", *options)
    return folder / "libupsnet_plugins_emulated.so"
