"""What `upsnet engine profile` reports: one table, and the keys of its JSON."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from eval.profiling.least import Least
from eval.profiling.measure import BODIES, LIBRARY
from eval.profiling.roofline import Roofline
from eval.profiling.summary import Row, Variant, add
from upsnet.report import Report
from upsnet.tables import make_table

OPERATORS = 16  # that the table lists; the others are one line
OTHERS = "others"
ENOUGH = 2 / 3  # of a call, that the nodes' medians add up to on a quiet machine
KERNELS = {LIBRARY: "with the library", BODIES: "from function bodies"}
FACTOR = 1e4  # GFLOP/s from which on they are said in TFLOP/s


class Profile(Report):
    """profile.json: one model in one runtime; in ONNX Runtime with the library of custom operators, and without."""

    machine: dict[str, str | int]
    versions: dict[str, str]
    model: str
    shape: list[int]  # of the images: batch, height, width, 3
    threads: int
    runs: int
    roofline: Roofline
    variants: list[Variant]  # the library's first
    runtime: str = "onnxruntime"
    device: str = "cpu"
    least: Least | None = None  # on the GPU that --gpu named


def profile_table(report: Profile) -> Table:
    """Modules, then operators, then all. Of a second variant the time alone, and how many times as long it takes."""
    first, *others = report.variants
    headings = ["", "nodes", "ms", "share", "MMAC", "MB", "GFLOP/s", "GB/s", "of the\nroof"]
    for other in others:
        headings += [f"{other.kernels}\nms", "times"]
    table = make_table(describe(report), *headings)
    for rows in ("modules", "operators"):
        mine = {row.name: row for row in getattr(first, rows)}
        theirs = [{row.name: row for row in getattr(other, rows)} for other in others]
        if rows == "operators":
            mine, *theirs = _shorten([mine, *theirs])
        for name in dict.fromkeys(name for some in (mine, *theirs) for name in some):
            table.add_row(name, *_cells(mine.get(name), first), *_compared(mine.get(name), name, theirs))
        table.add_section()
    every = [{"all": other.total} for other in others]
    table.add_row("all nodes", *_cells(first.total, first), *_compared(first.total, "all", every))
    table.caption = caption(report)
    table.caption_justify = "left"
    return table


def describe(report: Profile) -> str:
    """One line: the model, its input, and what a call takes."""
    batch, height, width, _ = report.shape
    where = f"{report.threads} thread{'s' * (report.threads > 1)}" if report.device == "cpu" else report.device
    words = [KERNELS.get(each.kernels, f"in {each.kernels}") for each in report.variants]
    calls = ", ".join(f"{each.ms:.1f} ms {word}" for each, word in zip(report.variants, words, strict=True))
    first, *others = report.variants
    ratios = "".join(f" ({other.ms / first.ms:.2f} times)" for other in others)
    return f"{report.model}, {batch} x {height} x {width}, {where}; a call: {calls}{ratios}"


def caption(report: Profile) -> str:
    """What the figures of the table are, and the roof."""
    first, roof = report.variants[0], report.roofline
    disturbed = "".join(
        f"\nOnly {100 * share:.0f} % of a profiled call{_named(each, report)} is in the table: other programs had the "
        "CPU; take more --runs."
        for each in report.variants
        if (share := each.total.ms / each.profiled_ms) < ENOUGH
    )
    return (
        f"Each node's median of {report.runs} runs with the profile on, which takes {first.profiled_ms:.1f} ms a call, "
        f"{first.outside_ms:.1f} of them in no node. The roof{f' ({roof.source})' * bool(roof.source)}: "
        f"{_rates(roof)}, {roof.gb_per_s:.1f} GB/s; what a cache holds can be faster."
        f"{disturbed}"
    )


def _named(variant: Variant, report: Profile) -> str:
    """Which of several, and how long a call of it takes: the caption has the first one's alone."""
    if len(report.variants) == 1:
        return ""
    return f" {KERNELS.get(variant.kernels, variant.kernels)} ({variant.profiled_ms:.1f} ms)"


def _rates(roof: Roofline) -> str:
    words = [rate(roof.gflops)]
    for name, gflops in (("TF32", roof.tf32_gflops), ("fp16 and bf16", roof.half_gflops), ("fp8", roof.fp8_gflops)):
        words += [f"{rate(gflops)} of {name}"] * bool(gflops)
    return ", ".join([*words, *[f"{rate(roof.int8_gops, 'OP/s')} of int8"] * bool(roof.int8_gops)])


def rate(giga: float, unit: str = "FLOP/s") -> str:
    """Of products."""
    return f"{giga:.0f} G{unit}" if giga < FACTOR else f"{giga / 1e3:.0f} T{unit}"


def _shorten(columns: Sequence[dict[str, Row]]) -> list[dict[str, Row]]:
    """Each variant's most expensive operators, and one row for what is left."""
    kept = {name for rows in columns for name in list(rows)[:OPERATORS]}
    short = []
    for rows in columns:
        rest = [row for name, row in rows.items() if name not in kept]
        short.append(
            {name: row for name, row in rows.items() if name in kept} | ({OTHERS: add(OTHERS, rest)} if rest else {})
        )
    return short


def _cells(row: Row | None, variant: Variant) -> list[str]:
    if row is None:
        return ["–"] * 8
    seconds = max(row.ms, 1e-6) / 1e3
    return [
        str(row.nodes),
        f"{row.ms:.2f}",
        f"{100 * row.ms / variant.total.ms:.1f} %",
        f"{row.macs / 1e6:.1f}" if row.macs else "–",
        f"{row.moved_bytes / 1e6:.1f}",
        f"{2 * row.macs / seconds / 1e9:.1f}" if row.macs else "–",
        f"{row.moved_bytes / seconds / 1e9:.1f}",
        f"{100 * row.roof_ms / max(row.ms, 1e-6):.0f} %",
    ]


def _compared(row: Row | None, name: str, others: Sequence[dict[str, Row]]) -> list[str]:
    cells = []
    for rows in others:
        other = rows.get(name)
        cells.append("–" if other is None else f"{other.ms:.2f}")
        cells.append("–" if other is None or row is None else f"{other.ms / max(row.ms, 1e-6):.2f}")
    return cells
