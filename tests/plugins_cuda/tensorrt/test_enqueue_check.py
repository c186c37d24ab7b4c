"""The C++ program that plays TensorRT on GPU machines, here around the emulated kernels."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.plugins_cuda.tensorrt.libraries import for_the_cpu

pytestmark = pytest.mark.tensorrt


def test_emulated() -> None:
    """Under `make sanitize` every allocation ends where the plugin was told that it ends."""
    folder = for_the_cpu("upsnet_enqueue_check_emulated")
    environment = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "ASAN_OPTIONS")}
    program = folder / "upsnet_enqueue_check_emulated"
    done = subprocess.run([program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, last = done.stdout.splitlines()
    assert last == "enqueue: 6 of 6 nodes, 152 runs, 0 failures"
    assert len(lines) == 38 and all(line.startswith("ok ") for line in lines)
