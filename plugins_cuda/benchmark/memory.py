"""Peak memory that one call of an operator takes on a CPU beyond its inputs, measured in a process of its own.

python -m plugins_cuda.benchmark.memory ARGUMENTS.pt ROOM ours|reference      prints bytes
"""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import plugins_cuda
from plugins_cuda import library
from plugins_cuda.benchmark import inputs
from plugins_cuda.benchmark.inputs import Sizes

ROOMS = ("panoptic_fusion", "roi_align_fpn", "nms", "deform_conv")


def arguments_of(room: str, sizes: Sizes) -> dict[str, Any]:
    """A call of the operator by its keywords: float32, NCHW."""
    if room == "panoptic_fusion":
        return {**inputs.panoptic(sizes), "num_stuff": sizes.stuff, "stuff_area_limit": 4096.0}
    if room == "roi_align_fpn":
        features, rois = inputs.pyramid(sizes)
        return {"features": features, "rois": rois, "output_size": sizes.output_size}
    if room == "nms":
        limits = {"iou_threshold": 0.5, "score_threshold": 0.05, "max_output": sizes.detections}
        return {**inputs.detections(sizes), **limits}
    return inputs.deformed(sizes)


def peak_of(room: str, sizes: Sizes, which: str) -> int:
    """Bytes, outputs included. The process loads its arguments from a file: making them would leave a peak behind.

    RuntimeError when it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "arguments.pt"
        torch.save(arguments_of(room, sizes), path)
        command = [sys.executable, "-m", "plugins_cuda.benchmark.memory", str(path), room, which]
        root = Path(__file__).resolve().parents[2]
        done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    if done.returncode != 0:
        raise RuntimeError(f"measuring the memory of {room} failed: {done.stderr.strip().splitlines()[-1:]}")
    return int(done.stdout)


def peak_resident() -> int:
    """Bytes of resident memory at their most, since `forget_peak` where the system can do that."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return 1024 * int(line.split()[1])
    # This also counts the process that started this one, where that was larger; VmHWM does not.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """From here on the peak counts anew (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def main(path: str, room: str, which: str) -> None:
    call = getattr(plugins_cuda, room)
    with library.definitions() if which == "reference" else contextlib.nullcontext():
        call(**arguments_of(room, inputs.QUICK))  # loads the library, starts the threads
        arguments = torch.load(path)
        forget_peak()
        before = peak_resident()
        call(**arguments)
        print(peak_resident() - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
