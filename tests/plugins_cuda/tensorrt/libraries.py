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
    plugins = "upsnet_plugins" if device == "cuda" else "upsnet_plugins_emulated"
    folder = Path(os.environ.get("UPSNET_OPERATORS", "/nowhere"))
    if not (folder / f"lib{plugins}.so").is_file():
        sanitizers = os.environ.get("UPSNET_SANITIZE", "")
        options = (
            ["-DCMAKE_CUDA_ARCHITECTURES=native"] if device == "cuda" else [NO_CUDA, f"-DUPSNET_SANITIZE={sanitizers}"]
        )
        folder = made(device + "_sanitized" * bool(sanitizers), [plugins, "upsnet_plugin_harness"], *options)
    return folder / "libupsnet_plugin_harness.so", folder / f"lib{plugins}.so"
