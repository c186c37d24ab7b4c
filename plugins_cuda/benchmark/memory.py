"""Peak memory that one panoptic_fusion takes on a CPU beyond its inputs, measured in a process of its own.

python -m plugins_cuda.benchmark.memory INPUTS.pt NUM_STUFF ours|reference      prints bytes
"""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import plugins_cuda
from plugins_cuda.benchmark import inputs
from plugins_cuda.panoptic_fusion import reference


def fusion_peak(tensors: dict[str, torch.Tensor], num_stuff: int, which: str) -> int:
    """Bytes. The process loads the inputs from a file: making them would leave its own peak behind."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inputs.pt"
        torch.save(tensors, path)
        command = [sys.executable, "-m", "plugins_cuda.benchmark.memory", str(path), str(num_stuff), which]
        root = Path(__file__).resolve().parents[2]
        done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    if done.returncode != 0:
        raise RuntimeError(f"measuring the memory of {which} failed: {done.stderr.strip().splitlines()[-1:]}")
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


def main(path: str, num_stuff: str, which: str) -> None:
    fuse = {"ours": plugins_cuda.panoptic_fusion, "reference": reference.panoptic_fusion}[which]
    small = inputs.panoptic(inputs.QUICK)
    fuse(**small, num_stuff=inputs.QUICK.stuff, stuff_area_limit=64.0)  # loads the library, starts the threads
    tensors = torch.load(path)
    forget_peak()
    before = peak_resident()
    fuse(**tensors, num_stuff=int(num_stuff), stuff_area_limit=4096.0)
    print(peak_resident() - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
