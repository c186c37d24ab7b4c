"""`upsnet predict --photos-from` with a predictor without a network, for tests: as a function, and as a process.

python -m tests.upsnet.bulk.stand_in LIST OUT [--shard i/n] [--block K] [--pause SECONDS]
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from tests.conftest import ROOT, Halves
from upsnet.bulk.command import BulkOptions, Here, predict_listed
from upsnet.command_line.command import execute, make_app
from upsnet.geometry import NetworkBatch
from upsnet.runtimes.options import RuntimeOptions
from upsnet.runtimes.predictor import Predictor, RawPrediction


class Slow(Halves):
    """One that takes its time."""

    def __init__(self, pause: float) -> None:
        super().__init__()
        self.pause = pause

    def predict(self, batch: NetworkBatch) -> RawPrediction:
        time.sleep(self.pause)
        return super().predict(batch)


def run(photos_from: Path | str, out: Path | str, predictor: Predictor | None = None, **options: object) -> bool:
    """Whether photos were left out."""
    here = Here(RuntimeOptions(), 2, predictor or Halves())
    return predict_listed(BulkOptions(str(photos_from), str(out), **options), here)  # type: ignore[arg-type]


def write_photos(folder: Path, count: int) -> Path:
    """Tiny photos of several sizes; the list of them, which is beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for index in range(count):
        names.append(f"{index:05}.png")
        size = 5 + index % 3, 4 + index % 5
        Image.fromarray(np.full((*size, 3), index % 256, np.uint8)).save(folder / names[-1])
    path = folder / "list.txt"
    path.write_text("".join(f"{name}\n" for name in names))
    return path


def start(photos_from: Path, out: Path, *options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.upsnet.bulk.stand_in", photos_from, out, *options]
    return subprocess.Popen(
        list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def contents(out: Path) -> dict[str, str]:
    """By name, a digest of every file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir()}


def main(photos_from: str, out: str, shard: str | None = None, block: int | None = None, pause: float = 0.0) -> None:
    run(photos_from, out, Slow(pause), shard=shard, block=block)


if __name__ == "__main__":
    execute(make_app(main))
