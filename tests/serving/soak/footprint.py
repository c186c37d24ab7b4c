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

    def megabytes(self) -> dict[str, float]:
        """Of each process, by name, pages that several share counted once; "regions": of their regions in /dev/shm."""
        found: dict[str, float] = {}
        regions = {}
        for pid in self.processes():
            with suppress(OSError):  # it has ended
                sizes = re.findall(r"^Pss_(?:Anon|File): +(\d+) kB", _read(pid, "smaps_rollup"), re.MULTILINE)
                name = _name(pid)
                found[name] = found.get(name, 0) + sum(map(int, sizes)) / 1024
                for line in _read(pid, "maps").splitlines():
                    if (place := line.partition("/dev/shm/")[2]) and not place.endswith("(deleted)"):
                        regions[place] = Path("/dev/shm", place).stat().st_blocks * 512
        return found | {"regions": sum(regions.values()) / MIB}

    def restarts(self) -> int:
        snapshot = Snapshot.of(self.metrics)
        assert snapshot is not None, f"no metrics at {self.metrics}"
        return snapshot.restarts


def _read(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


def _name(pid: int) -> str:
    """The service, Triton, or the model of a stub."""
    words = _read(pid, "cmdline")
    if model := re.search(r"/repository/([^/]+)/", words):
        return model[1]
    return "Triton" if "tritonserver" in words.split("\0")[0] else "service"
