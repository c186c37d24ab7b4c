"""NVIDIA's security bulletins about Triton: the one table that pins and warnings are held against."""

from __future__ import annotations

from typing import NamedTuple

EMBEDDED = "24.10 (Triton 2.51)"  # in the wheel nvidia-pytriton 0.7.0; a registry has no newer server


class Bulletin(NamedTuple):
    """What is wrong in releases before `mended`."""

    mended: str  # year.month, as the container is tagged
    cves: tuple[str, ...]
    what: str


BULLETINS = (
    Bulletin("25.07", ("CVE-2025-23310", "CVE-2025-23311"), "HTTP: a request overflows the stack, and may run code"),
    Bulletin(
        "25.07",
        ("CVE-2025-23319", "CVE-2025-23320", "CVE-2025-23334"),
        "Python backend: shared memory of its own can be read and written from outside, and runs code",
    ),
    Bulletin("25.08", ("CVE-2025-23316",), "Python backend: the control of models runs code"),
    Bulletin("26.02", ("CVE-2026-24146", "CVE-2026-24173"), "malformed requests and many outputs stop the server"),
    Bulletin(
        "26.03",
        ("CVE-2026-24206", "CVE-2026-24207", "CVE-2026-24208", "CVE-2026-24209"),
        "restricted calls are open without their secret; paths lead out of their folder",
    ),
)


def needed() -> str:
    """The lowest release that mends all of them."""
    return max((bulletin.mended for bulletin in BULLETINS), key=release)


def release(tag: str) -> tuple[int, int]:
    """Year and month of a release or of a container's tag: "26.03-py3" -> (26, 3). ValueError for anything else."""
    year, month = tag.partition("-")[0].split(".")
    return int(year), int(month)


def embedded_notice() -> str:
    """One line for whoever starts the embedded server."""
    return (
        f"The embedded Triton is release {EMBEDDED} and has published faults: it is for this machine alone; "
        f"serve others with NVIDIA's container, {needed()} or newer (docs/operating.md)."
    )
