"""`upsnet train` in processes of their own, which can be ended together."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

from upsnet.errors import InputError


class Trainings:
    """Those that run now, each with so many threads."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._lock, self._stopped = threading.Lock(), False
        self._running: set[subprocess.Popen[bytes]] = set()

    def run(self, config: Path, folder: Path, device: str, overrides: tuple[str, ...]) -> None:
        """One training, whose output goes to a log beside the folder. InputError where it fails."""
        command = [sys.executable, "-m", "training.train", "--config", str(config), "--out", str(folder)]
        command += ["--device", device, *(word for override in overrides for word in ("--set", override))]
        log = folder.with_name(folder.name + ".log")
        if status := self._status(command, log):
            last = log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
            raise InputError(f"{folder}: training ended with exit status {status}: {last} (all of it: {log})")

    def stop(self) -> None:
        """SIGTERM to all, on which they save and end; no other begins."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()

    def _status(self, command: list[str], log: Path) -> int:
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads)}
        with log.open("ab") as stream:
            with self._lock:
                if self._stopped:
                    raise InputError(f"{log}: not begun, as the ablation ends")
                process = subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT)
                self._running.add(process)
            try:
                return process.wait()
            finally:
                with self._lock:
                    self._running.discard(process)
