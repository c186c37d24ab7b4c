"""Other builds of the plugins around emulated kernels, beside the one that the tests are about."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

from filelock import FileLock

from plugins_cuda import library


@functools.cache
def variant(name: str, *options: str) -> Path:
    """The plugin library made with these options of CMake; `name` is its folder's."""
    folder = library.BUILD.parent / f"plugins_{name}"
    folder.parent.mkdir(exist_ok=True)
    fast = ("-DCMAKE_CUDA_COMPILER=NOTFOUND", "-DCMAKE_BUILD_TYPE=Debug")  # its kernels are not what is tested
    with FileLock(f"{folder}.lock"):  # two runs of the tests
        for command in (
            ["cmake", "-S", str(library.SOURCES), "-B", str(folder), *fast, *options],
            ["cmake", "--build", str(folder), "--parallel", str(os.cpu_count()), "--target", "upsnet_plugins_emulated"],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return folder / "libupsnet_plugins_emulated.so"
