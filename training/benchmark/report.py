"""The tables of the training benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from rich.table import Table

from training.benchmark.loading import Rate, Turns
from training.benchmark.steps import Timed
from upsnet.tables import make_table


def step_table(title: str, steps: Sequence[Timed], ratio: float, compiled_ratio: float | None = None) -> Table:
    columns = ("images a second", "seconds a step", "least ... most", "first step (s)", "memory (GiB)")
    table = make_table(title, "", *columns)
    for row in steps:
        spread = f"{min(row.seconds):.3f} ... {max(row.seconds):.3f}"
        memory = "–" if row.memory_bytes is None else f"{row.memory_bytes / 2**30:.2f}"
        figures = (f"{row.images_per_s:.2f}", f"{row.median_s:.3f}", spread, f"{row.first_s:.1f}", memory)
        table.add_row(row.name, *figures)
    table.add_row("ratio to torchvision", f"{ratio:.2f}")
    if compiled_ratio:
        table.add_row("compiled to not", f"{compiled_ratio:.2f}")
    return table


def parts_table(title: str, parts: dict[str, float], whole: str) -> Table:
    """parts: milliseconds."""
    table = make_table(title, "", "ms", "share")
    total = sum(parts.values())
    for name, ms in parts.items():
        table.add_row(name, f"{ms:.2f}", f"{100 * ms / total:.1f} %")
    table.add_row(whole, f"{total:.2f}")
    return table


def loader_table(title: str, rates: Sequence[Rate], parts: dict[str, float]) -> Table:
    """parts: a core's milliseconds an image, of which the last column is made: what so many cores could bring."""
    table = make_table(title, "workers", "images a second", "of each worker", "of so many cores")
    for row in rates:
        each = row.images_per_s / max(1, row.workers)
        table.add_row(
            str(row.workers), f"{row.images_per_s:.1f}", f"{each:.1f}", f"{each * sum(parts.values()) / 10:.0f} %"
        )
    return table


def shards_table(title: str, turns: Sequence[Turns]) -> Table:
    table = make_table(title, "workers", "", "folders", "shards", "ratio", "least ... most")
    for row in turns:
        ratios = row.ratios()
        for what, files, shards, key, inverse in (
            ("images a second", row.folders, row.shards, "ratio", False),
            ("ms of a core an image", row.folders_ms, row.shards_ms, "ratio_core", True),
            ("read a second of a core, not decoded", row.folders_read, row.shards_read, "ratio_read", False),
        ):
            each = [a / b if inverse else b / a for a, b in zip(files, shards, strict=True)]
            spread = f"{min(each):.2f} ... {max(each):.2f}"
            values = (f"{median(files):.1f}", f"{median(shards):.1f}")
            table.add_row(str(row.workers), what, *values, f"{ratios[key]:.2f}", spread)
    return table
