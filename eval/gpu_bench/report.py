"""Ratios to the baseline of the same run, the goals, the roofline, and the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.gpu_bench import cases
from eval.gpu_bench.cases import BATCHES, CEILINGS
from plugins_cuda.benchmark.report import print_table

Row = dict[str, Any]
TYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}  # ceilings' names
GOAL_MS, GOAL_BATCH, GOAL_EAGER = 8.0, 1.5, 3.0


def with_ratios(rows: Sequence[Row]) -> list[Row]:
    """`speedup`: times the baseline's rate, of the same network, precision and batch. `batch_gain`: of the largest
    batch, times the smallest one's images a second. `floor_ms`, of rows with modules, and of each of these."""
    done = {key(row): row for row in rows if row["status"] == "done" and row["variant"] != CEILINGS}
    limits = next((row for row in rows if row["variant"] == CEILINGS and row["status"] == "done"), None)
    return [_with_ratios(row, done, limits) if row in done.values() else row for row in rows]


def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in ("network", "variant", "precision", "batch"))


def _with_ratios(row: Row, done: Mapping[tuple[Any, ...], Row], limits: Row | None) -> Row:
    row = dict(row)
    base = done.get((row["network"], cases.REFERENCE, row["precision"], row["batch"]))
    if base:
        row["speedup"] = base["median_ms"] / row["median_ms"]
    first = done.get((row["network"], row["variant"], row["precision"], min(BATCHES)))
    if first and row["batch"] == max(BATCHES):
        row["batch_gain"] = row["images_per_s"] / first["images_per_s"]
    if limits and "modules" in row:
        peak = limits["operations_per_s"].get(TYPES[row["precision"]]) or limits["operations_per_s"]["float32"]
        for cost in row["modules"].values():
            cost["floor_ms"] = 1e3 * max(cost["operations"] / peak, cost["bytes"] / limits["bytes_per_s"])
        row["floor_ms"] = sum(cost["floor_ms"] for cost in row["modules"].values())
    return row


def goals(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """Of each network: the goal, what was reached by the best variant, and whether that is enough."""
    found = []
    done = [row for row in rows if row["status"] == "done" and row["variant"] != CEILINGS]
    for network in dict.fromkeys(row["network"] for row in done):
        own = [row for row in done if row["network"] == network and row["precision"] != "fp32"]
        for text, name, batch, good in (
            (f"batch 1 in at most {GOAL_MS:g} ms", "median_ms", min(BATCHES), lambda value: value <= GOAL_MS),
            (f"batch {max(BATCHES)} at least {GOAL_BATCH:g} times batch 1's images/s", "batch_gain", max(BATCHES),
             lambda value: value >= GOAL_BATCH),
            (f"at least {GOAL_EAGER:g} times eager with reference operators", "speedup", min(BATCHES),
             lambda value: value >= GOAL_EAGER),
        ):  # fmt: skip
            rated = [row for row in own if row["batch"] == batch and name in row]
            if not rated:
                found.append((f"{network}: {text}", "not measured", "-"))
                continue
            best = min(rated, key=lambda row: row["median_ms"])
            how = f"{best[name]:.2f} ({best['precision']}, {best['variant']})"
            found.append((f"{network}: {text}", how, "yes" if good(best[name]) else "no"))
    return found


def print_report(rows: Sequence[Row], gpu: str) -> None:
    """rows: with their ratios."""
    columns = ("network", "type", "variant", "batch", "ms", "p95", "images/s", "times the baseline", "peak MiB",
               "identical", "set up s")  # fmt: skip
    print_table(f"Host to host on {gpu}", columns, [_cells(row) for row in rows if row["variant"] != CEILINGS])
    for row in rows:
        if row["status"] == "done" and "modules" in row:
            parts = [
                (name, f"{cost['ms']:.3f}", f"{cost['floor_ms']:.3f}" if "floor_ms" in cost else "-",
                 f"{cost['operations'] / 1e9:.1f}", f"{cost['bytes'] / 1e6:.1f}")
                for name, cost in row["modules"].items()
            ]  # fmt: skip
            title = f"{row['network']} {row['precision']} batch {row['batch']}, eager with our kernels"
            print_table(title, ("part", "ms", "roofline ms", "GFLOP", "MB"), parts)
    print_table("Goals", ("goal", "reached", "met"), goals(rows))


def _cells(row: Row) -> tuple[str, ...]:
    named = (row["network"], row["precision"], row["variant"], str(row.get("batch", "")))
    if row["status"] != "done":
        return (*named, row["status"], "", "", "", "", "", row.get("reason", ""))
    same = row.get("identical")
    return (
        *named,
        f"{row['median_ms']:.2f}",
        f"{row['p95_ms']:.2f}",
        f"{row['images_per_s']:.1f}",
        f"{row['speedup']:.2f}" if "speedup" in row else "-",
        f"{row['peak_mib']:.0f}",
        "-" if same is None else f"{100 * same:.2f} %",
        f"{row['setup_s']:.0f}",
    )
