"""Is the network the same at every stop? Compares runtimes on a data set: PQ, and identical pixels.

    python eval/parity.py --run runs/demo

Each runtime is held against the reference runtime at the same batch size. Against the first batch size it is compared
for information only: a batch is padded to its common size, which the convolutions see at an image's border.
Writes parity.json and report.html. Exit code 0: equal; 1: not equal; 2: bad input.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from eval.lockstep import Column, run_lockstep
from eval.open_run import open_run, runtimes_here
from eval.report import share, title, write_report
from eval.validation_set import open_dataset
from upsnet.categories import Categories
from upsnet.command_line import options
from upsnet.command_line.command import run
from upsnet.datasets.folder import PanopticFolder, Record
from upsnet.files import write_json
from upsnet.machine import machine_facts, package_versions
from upsnet.metrics.pq import GROUPS
from upsnet.runtimes.options import RuntimeOptions, find_runtime
from upsnet.runtimes.predictor import Predictor

LISTED = 20  # worst images and classes in parity.json


class Limits(NamedTuple):
    """max_pq_difference: fraction, of PQ for all, things and stuff alike; min_identical: share of the pixels.

    min_pq: fraction, what PQ of all classes must reach in every runtime.
    """

    max_pq_difference: float = 0.001
    min_identical: float = 0.999
    min_pq: float = 0.0


def run_parity(
    predictors: Sequence[Predictor],
    dataset: PanopticFolder,
    out: Path,
    *,
    batch_sizes: Sequence[int] = (1, 4),
    limit: int | None = None,
    limits: Limits = Limits(),  # noqa: B008 - immutable
    run: Path | None = None,
    facts: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Compares the predictors with the first of them; writes out/parity.json and out/report.html; returns the former.

    `limit`: only the first images. `run`: its training curve and configuration go into the report. `facts`: further
    facts about the machine. Raises InputError for bad input; nothing is written then.
    """
    records = dataset.records[:limit]
    comparison = run_lockstep(predictors, dataset, records, batch_sizes)
    manifest = predictors[0].manifest
    parity = summary(comparison.columns, manifest.categories_table, records, limits) | {
        "created": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        "model": manifest.name,
        "dataset": {"gt_json": str(dataset.gt_json), "images": len(records)},
        "machine": machine_facts() | (facts or {}),
        "versions": {f"export: {key}": value for key, value in manifest.versions.items()} | package_versions(),
    }
    write_report(out / "report.html", parity, comparison.examples, manifest.categories_table, run)
    write_json(out / "parity.json", parity)
    return parity


def summary(columns: list[Column], categories: Categories, records: list[Record], limits: Limits) -> dict[str, Any]:
    """The figures and the verdict, as parity.json has them. Columns come batch by batch, the reference first."""
    runtimes = list(dict.fromkeys(column.runtime for column in columns))
    scores = [column.stat.results(categories) for column in columns]
    rows, reasons = [], []
    for index, (column, score) in enumerate(zip(columns, scores, strict=True)):
        reference = index - index % len(runtimes)
        row = _row(column, score["results"], scores[reference]["results"], index == reference)
        row["identical_to_first_batch"] = (
            column.identical_to_first / int(column.class_pixels.sum()) if index >= len(runtimes) else None
        )
        rows.append(row)
        reasons += _reasons(row, limits)
    per_class = _per_class(columns, scores, categories, len(runtimes))
    present = [row for row in per_class if row["pq"] is not None]
    return {
        "equal": not reasons,
        "reasons": reasons,
        "limits": limits._asdict(),
        "reference": runtimes[0],
        "runtimes": runtimes,
        "columns": rows,
        "per_class": per_class,
        "worst_images": _worst_images(columns, records),
        "worst_classes": [row["name"] for row in per_class if row["difference"] or row["identical"] not in (None, 1.0)][
            :LISTED
        ],
        "lowest_classes": [row["name"] for row in sorted(present, key=lambda row: row["pq"])][:3],
        "warnings": columns[0].stat.warnings,
    }


def _row(column: Column, results: dict[str, Any], reference: dict[str, Any], is_reference: bool) -> dict[str, Any]:
    return {
        "runtime": column.runtime,
        "batch": column.batch,
        "reference": is_reference,
        "results": results,
        "difference": {group: _difference(results[group]["pq"], reference[group]["pq"]) for group in GROUPS},
        "identical": column.identical,
        "ms_per_image": statistics.median(column.milliseconds),
    }


def _difference(pq: float | None, reference: float | None) -> float:
    """A group without segments (None) counts as 0: what a prediction alone puts there has PQ 0 as well."""
    return (pq or 0.0) - (reference or 0.0)


def _reasons(row: dict[str, Any], limits: Limits) -> list[str]:
    """Why this column is not equal to the reference, in words; [] when it is."""
    where = f"{title(row['runtime'])}, batch {row['batch']}"
    allowed, needed = f"{100 * limits.max_pq_difference:g}", f"{100 * limits.min_identical:g} %"
    reasons = [
        f"{where}: PQ ({group.lower()}) differs by {100 * difference:+.3f} points, allowed {allowed}"
        for group, difference in row["difference"].items()
        if not abs(difference) <= limits.max_pq_difference
    ]
    if not row["identical"] >= limits.min_identical:
        reasons.append(f"{where}: {share(row['identical'])} of the pixels identical, needed {needed}")
    quality = row["results"]["All"]["pq"] or 0.0
    if not quality >= limits.min_pq:
        reasons.append(f"{where}: PQ {100 * quality:.1f}, needed {100 * limits.min_pq:g}")
    return reasons


def _per_class(
    columns: list[Column], scores: list[dict[str, Any]], categories: Categories, runtimes: int
) -> list[dict[str, Any]]:
    """One entry a category: largest difference first, then fewest identical pixels, then lowest PQ."""
    rows = []
    for contiguous, category in enumerate(categories):
        counts = [score["per_class"][str(category.id)] for score in scores]
        present = any(count["tp"] + count["fp"] + count["fn"] for count in counts)
        differences = [
            count["pq"] - counts[index - index % runtimes]["pq"] for index, count in enumerate(counts) if present
        ]
        shares = [
            float(column.class_identical[contiguous] / column.class_pixels[contiguous])
            for column in columns
            if column.class_pixels[contiguous]
        ]
        rows.append(
            {
                "id": category.id,
                "name": category.name,
                "isthing": category.isthing,
                "color": list(category.color),
                "segments": counts[0]["tp"] + counts[0]["fn"],
                **{key: counts[0][key] if present else None for key in ("pq", "sq", "rq")},
                "difference": max(differences, key=abs, default=0.0),
                "identical": min(shares, default=None),
            }
        )
    return sorted(rows, key=_worst_first)


def _worst_first(row: dict[str, Any]) -> tuple[float, float, float]:
    identical = 1.0 if row["identical"] is None else row["identical"]
    return -abs(row["difference"]), identical, 2.0 if row["pq"] is None else row["pq"]


def _worst_images(columns: list[Column], records: list[Record]) -> list[dict[str, Any]]:
    """Fewest identical pixels first, then lowest PQ of the reference."""
    rows = []
    for index, record in enumerate(records):
        by_column = [
            {
                "runtime": column.runtime,
                "batch": column.batch,
                "pq": column.image_pq[index],
                "identical": column.image_identical[index],
            }
            for column in columns
        ]
        least = min(column.image_identical[index] for column in columns)
        pq = columns[0].image_pq[index]
        entry = {"image_id": record.image_id, "file_name": record.file_name, "identical": least, "columns": by_column}
        rows.append(((least, 1.0 if pq is None else pq, index), entry))
    return [entry for _, entry in sorted(rows, key=lambda row: row[0])[:LISTED]]


def parity_table(parity: dict[str, Any]) -> Table:
    """What the terminal shows: one line for each runtime and batch size. The difference is the largest of the three."""
    table = Table(
        title=f"PQ on {parity['dataset']['images']} images, each against {title(parity['reference'])}",
        box=SIMPLE,
        padding=(0, 1, 0, 0),
    )
    for heading in ("runtime", "batch", "PQ", "things", "stuff", "difference", "identical", "ms/image"):
        table.add_column(heading, justify="left" if heading == "runtime" else "right", no_wrap=True)
    for row in parity["columns"]:
        scores = [row["results"][group]["pq"] for group in GROUPS]
        cells = ["–" if pq is None else f"{100 * pq:.2f}" for pq in scores]
        if row["reference"]:
            cells += ["reference", ""]
        else:
            cells += [f"{100 * max(row['difference'].values(), key=abs):+.3f}", share(row["identical"])]
        table.add_row(title(row["runtime"]), str(row["batch"]), *cells, f"{row['ms_per_image']:.1f}")
    return table


def order(runtimes: Sequence[str], reference: str) -> list[str]:
    """The reference first, then the others as given, each once; InputError for an unknown one."""
    names = list(dict.fromkeys([reference, *runtimes]))
    for name in names:
        find_runtime(name)
    return names


def main(
    run: options.Run = Path("runs/demo"),
    runtimes: options.RuntimeNames = None,
    reference: Annotated[str, typer.Option(help="The runtime that the others are held against.")] = "pytorch",
    checkpoint: options.Checkpoint = None,
    gt_json: options.GtJson = None,
    gt_folder: options.GtFolder = None,
    images: options.Images = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N images.")] = None,
    batch_sizes: options.BatchSizes = [1, 4],  # noqa: B006
    max_pq_difference: Annotated[float, typer.Option(min=0, help="Allowed; 0.001 is 0.1 points.")] = 0.001,
    min_identical: Annotated[float, typer.Option(min=0, max=1, help="Needed share of identical pixels.")] = 0.999,
    min_pq: Annotated[float, typer.Option(min=0, max=1, help="PQ that every runtime must reach; 0.5 is 50.")] = 0.0,
    url: options.Url = None,
    threads: options.Threads = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for parity.json and report.html (default: the run's).")
    ] = None,
) -> None:
    """Compare runtimes on a data set: PQ and identical pixels. Exit code 0: equal, 1: not, 2: bad input."""
    here, left_out = (runtimes, None) if runtimes else runtimes_here(url)
    names = order(here, reference)
    dataset = open_dataset(gt_json, gt_folder, images, run)
    limits = Limits(max_pq_difference, min_identical, min_pq)
    sizes = list(dict.fromkeys(batch_sizes))
    out = out or run
    facts: dict[str, Any] = {"threads": threads or "default"}
    if left_out:
        facts["Triton"] = f"left out: {left_out}"
    chosen = RuntimeOptions(run, checkpoint=checkpoint, url=url, threads=threads)
    with open_run(chosen, names) as predictors:
        parity = run_parity(
            predictors, dataset, out, batch_sizes=sizes, limit=limit, limits=limits, run=run, facts=facts
        )
    for warning in parity["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    Console().print(parity_table(parity))
    for reason in parity["reasons"]:
        print(f"failed: {reason}")
    print(f"{'equal' if parity['equal'] else 'NOT equal'}; wrote {out / 'parity.json'} and {out / 'report.html'}")
    if not parity["equal"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    run(main)
