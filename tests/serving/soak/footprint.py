"""The memory of a service from outside: all its processes, and what it keeps in /dev/shm."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from serving.load_test.operators import Snapshot

MIB = 2**20


class Footprint(NamedTuple):
    """Of the process `pid` and all that it has started."""

    pid: int
    metrics: str  # host:port

    def processes(self) -> list[int]:
        children: dict[int, list[int]] = {}
        for status in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # it has ended
                parent = int(status.read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(status.parent.name))
        found = [self.pid]
        for pid in found:  # grows while it is walked
            found += children.get(pid, [])
        return found

    def megabytes(self) -> tuple[float, float]:
        """Of the processes, pages that several share counted once; of their regions in /dev/shm."""
        total, regions = 0, dict[str, int]()
        for pid in self.processes():
            with suppress(OSError):
                sizes = re.findall(r"^Pss_(?:Anon|File): +(\d+) kB", _read(pid, "smaps_rollup"), re.MULTILINE)
                total += sum(map(int, sizes)) * 1024
                for line in _read(pid, "maps").splitlines():
                    if (place := line.partition("/dev/shm/")[2]) and not place.endswith("(deleted)"):
                        regions[place] = Path("/dev/shm", place).stat().st_blocks * 512
        return total / MIB, sum(regions.values()) / MIB

    def restarts(self) -> int:
        snapshot = Snapshot.of(self.metrics)
        assert snapshot is not None, f"no metrics at {self.metrics}"
        return snapshot.restarts


def _read(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()
