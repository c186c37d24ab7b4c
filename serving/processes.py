"""What /proc tells of processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

PAGE = os.sysconf("SC_PAGE_SIZE")
PROC = Path("/proc")

# Becomes a command, after asking the kernel to send it SIGTERM should the process that starts it die first.
LAUNCHER = """
import ctypes, os, sys
PR_SET_PDEATHSIG, SIGTERM = 1, 15
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class Stat(NamedTuple):
    """Of one process: what it is doing (Z: it has ended), its group, its start in ticks since boot, resident bytes."""

    state: str
    group: int
    started: int
    resident: int


def stat(pid: int) -> Stat | None:
    """None where there is no such process."""
    try:
        fields = (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return Stat(fields[0], int(fields[2]), int(fields[19]), int(fields[21]) * PAGE)


def processes() -> list[int]:
    """All of them."""
    return [int(folder.name) for folder in PROC.glob("[0-9]*")]


def members(group: int) -> dict[int, Stat]:
    """The live processes of a group."""
    found = {pid: stat(pid) for pid in processes()}
    return {pid: each for pid, each in found.items() if each and each.group == group and each.state not in "ZX"}


def arguments(pid: int) -> list[str]:
    """Its command line; empty where there is no such process."""
    try:
        return os.fsdecode((PROC / str(pid) / "cmdline").read_bytes()).split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return []
