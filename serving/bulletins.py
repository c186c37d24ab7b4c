"""NVIDIA's security bulletins about Triton: the one table that pins and warnings are held against.

Read in NVIDIA's repository github.com/NVIDIA/product-security, the last one of September 2026. Whoever adds a newer one
here is told by the tests which deployments are behind it.
"""

from __future__ import annotations

from typing import NamedTuple

EMBEDDED = "24.10 (Triton 2.51)"  # in the wheel nvidia-pytriton 0.7.0; a registry has no newer server


class Bulletin(NamedTuple):
    """What is wrong in releases before `mended`."""

    number: int
    published: str  # year-month
    mended: str  # year.month, as the container is tagged
    cves: tuple[str, ...]
    what: str


BULLETINS = (
    Bulletin(5612, "2025-02", "24.12", ("CVE-2024-53880",), "a model's size overflows a number"),
    Bulletin(
        5687,
        "2025-08",
        "25.07",
        (
            *("CVE-2025-23310", "CVE-2025-23311", "CVE-2025-23317", "CVE-2025-23318", "CVE-2025-23319"),
            *("CVE-2025-23268", "CVE-2025-23320", "CVE-2025-23321", "CVE-2025-23322", "CVE-2025-23323"),
            *("CVE-2025-23324", "CVE-2025-23325", "CVE-2025-23326", "CVE-2025-23327", "CVE-2025-23331"),
            *("CVE-2025-23333", "CVE-2025-23334", "CVE-2025-23335"),
        ),
        "HTTP requests overflow the stack and run code; so does the Python backend's shared memory",
    ),
    Bulletin(
        5691,
        "2025-09",
        "25.08",
        ("CVE-2025-23316", "CVE-2025-23328", "CVE-2025-23329", "CVE-2025-23336"),
        "the name of a model runs code through model control; shared memory of the Python backend",
    ),
    Bulletin(5723, "2025-11", "25.09", ("CVE-2025-33202",), "large requests overflow the stack"),
    Bulletin(5734, "2025-12", "25.10", ("CVE-2025-33201", "CVE-2025-33211"), "large requests stop the server"),
    Bulletin(
        5790,
        "2026-03",
        "26.01",
        ("CVE-2025-33238", "CVE-2025-33254", "CVE-2026-24158"),
        "compressed requests and others stop the server",
    ),
    Bulletin(
        5816,
        "2026-04",
        "26.02",
        ("CVE-2026-24146", "CVE-2026-24147", "CVE-2026-24173", "CVE-2026-24174", "CVE-2026-24175"),
        "malformed requests and requests of many outputs stop the server",
    ),
    Bulletin(
        5828,
        "2026-05",
        "26.03",
        (
            *("CVE-2026-24206", "CVE-2026-24207", "CVE-2026-24208", "CVE-2026-24209", "CVE-2026-24210"),
            *("CVE-2026-24213", "CVE-2026-24214", "CVE-2026-24215"),
        ),
        "what is restricted is open without its secret; paths lead out of their folder; the DALI backend",
    ),
    Bulletin(5848, "2026-07", "26.04", ("CVE-2026-24264", "CVE-2026-24266"), "compressed requests; memory used freed"),
    Bulletin(
        5853,
        "2026-07",
        "26.05",
        (
            *("CVE-2026-47476", "CVE-2026-47477", "CVE-2026-47478", "CVE-2026-47479", "CVE-2026-47480"),
            *("CVE-2026-47481", "CVE-2026-47482"),
        ),
        "a way around the secrets; requests overflow the stack or take all memory",
    ),
    Bulletin(5860, "2026-08", "26.03", ("CVE-2026-47487",), "a fault that NVIDIA rates as medium"),
    Bulletin(
        5865,
        "2026-08",
        "26.06",
        ("CVE-2026-47606", "CVE-2026-47627", "CVE-2026-47628", "CVE-2026-47629", "CVE-2026-47630"),
        "paths lead out of their folder and run code",
    ),
    Bulletin(5875, "2026-09", "26.07", ("CVE-2026-16497", "CVE-2026-47625"), "calls without a check; endless loops"),
)


def needed() -> str:
    """The lowest release that mends all of them."""
    return max((bulletin.mended for bulletin in BULLETINS), key=release)


def release(tag: str) -> tuple[int, int]:
    """Year and month of a release or of a container's tag: "26.07-py3" -> (26, 7). ValueError for anything else."""
    year, month = tag.partition("-")[0].split(".")
    return int(year), int(month)


def embedded_notice() -> str:
    """One line for whoever starts the embedded server."""
    return (
        f"The embedded Triton is release {EMBEDDED} and has published faults: it is for this machine alone; "
        f"serve others with NVIDIA's container, {needed()} or newer (docs/operating.md)."
    )
