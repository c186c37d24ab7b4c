"""Is the network the same at every stop? Compares runtimes on a data set: PQ, and identical pixels.

    python eval/parity.py --run runs/demo

Each runtime is held against the reference runtime at the same batch size. Against the first batch size it is compared
for information only: a batch is padded to its common size, which the convolutions see at an image's border.
Writes parity.json and report.html. Exit code 0: equal; 1: not equal; 2: bad input.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from eval.open_run import open_run, runtimes_here
from eval.parity_report import Limits, Parity, summarize
from eval.report import write_report
from upsnet.command_line import options
from upsnet.command_line.command import run
from upsnet.datasets.folder import PanopticFolder
from upsnet.datasets.validation_set import open_dataset
from upsnet.engines.manifest import ENGINES, ParityFigures, engine_manifest_path, record_parity
from upsnet.figures import points, share, title
from upsnet.files import sha256
from upsnet.metrics.pq import GROUPS
from upsnet.parity.lockstep import run_lockstep
from upsnet.parity.photos import LabelledPhotos
from upsnet.runtimes.open import ENGINE_FOLDER
from upsnet.runtimes.options import RuntimeOptions, find_runtime
from upsnet.runtimes.predictor import Predictor
from upsnet.tables import make_table, print_tables


def run_parity(
    predictors: Sequence[Predictor],
    dataset: PanopticFolder,
    out: Path,
    *,
    batch_sizes: Sequence[int] = (1, 4),
    limit: int | None = None,
    limits: Limits = Limits(),  # noqa: B008 - immutable
    run: Path | None = None,
    facts: dict[str, str | int] | None = None,
) -> Parity:
    """Compares the predictors with the first of them; writes out/parity.json and out/report.html; returns the former.

    `limit`: only the first images. `run`: its training curve and configuration go into the report. `facts`: further
    facts about the machine. Raises InputError for bad input; nothing is written then.
    """
    photos = LabelledPhotos(dataset, dataset.records[:limit])
    comparison = run_lockstep(predictors, photos, batch_sizes)
    devices: dict[str, str | int] = {f"{title(each.name)}, device": each.device_name for each in predictors}
    devices |= {f"{title(each.name)}, kernels": each.kernels for each in predictors}
    parity = summarize(comparison, photos.title, limits, devices | (facts or {}))
    write_report(out / "report.html", parity, comparison.examples, predictors[0].manifest.categories_table, run)
    parity.save(out / "parity.json")
    return parity


def parity_table(parity: Parity) -> Table:
    """One line for each runtime and batch size. The difference is the largest of the three."""
    table = make_table(
        f"PQ on {parity.dataset.images} images, each against {title(parity.reference)}",
        *("runtime", "batch", "PQ", "things", "stuff", "difference", "identical", "ms/image"),
    )
    for row in parity.columns:
        cells = [points(row.results[group].pq, digits=2) for group in GROUPS]
        if row.reference:
            cells += ["reference", ""]
        else:
            cells += [f"{100 * max(row.difference.values(), key=abs):+.3f}", share(row.identical)]
        table.add_row(title(row.runtime), str(row.batch), *cells, f"{row.ms_per_image:.1f}")
    return table


def record_in_engines(parity: Parity, predictors: Sequence[Predictor], run: Path) -> list[Path]:
    """Writes the figures of each engine that ran into its manifest; returns these engines.

    ONNX Runtime's is the model itself: where the run's engine/ has the same file, it is that.
    """
    engines = {each.name: engine for each in predictors if (engine := _engine_of(each, run)) is not None}
    for name, engine in engines.items():
        rows = [row for row in parity.columns if row.runtime == name]
        figures = [
            ParityFigures(
                data=parity.dataset.gt_json,
                images=parity.dataset.images,
                batch=row.batch,
                reference=parity.reference,
                pq=row.results["All"].pq or 0.0,
                difference=row.difference["All"],
                identical=row.identical,
            )
            for row in rows
        ]
        record_parity(engine, figures)
    return list(engines.values())


def _engine_of(predictor: Predictor, run: Path) -> Path | None:
    engine: Path | None = getattr(predictor, "engine_path", None)
    model, copy = run / ENGINES["onnxruntime"], run / ENGINE_FOLDER / ENGINES["onnxruntime"]
    if engine is not None or predictor.name != "onnxruntime" or not engine_manifest_path(copy).is_file():
        return engine
    same = model.is_file() and copy.is_file() and sha256(model) == sha256(copy)
    return copy if same else None


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
    engine: options.EngineFile = None,
    gt_json: options.GtJson = None,
    gt_folder: options.GtFolder = None,
    images: options.Images = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N images.")] = None,
    batch_sizes: options.BatchSizes = [1, 4],  # noqa: B006
    max_pq_difference: Annotated[
        float, typer.Option(min=0, help="Allowed; 0.001 is 0.1 points.")
    ] = Limits.max_pq_difference,
    min_identical: Annotated[
        float, typer.Option(min=0, max=1, help="Needed share of identical pixels.")
    ] = Limits.min_identical,
    min_pq: Annotated[
        float, typer.Option(min=0, max=1, help="PQ that every runtime must reach; 0.5 is 50.")
    ] = Limits.min_pq,
    url: options.Url = None,
    threads: options.Threads = None,
    device: options.Device = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for parity.json and report.html (default: the run's).")
    ] = None,
) -> None:
    """Compare runtimes on a data set: PQ and identical pixels. Exit code 0: equal, 1: not, 2: bad input."""
    names = order(runtimes or [], reference)
    dataset = open_dataset(gt_json, gt_folder, images, run)
    chosen = RuntimeOptions(run, checkpoint=checkpoint, url=url, threads=threads, device=device, engine=engine)
    left_out: dict[str, str] = {}
    if not runtimes:
        here, left_out = runtimes_here(chosen)
        names = order(here, reference)
    limits = Limits(max_pq_difference, min_identical, min_pq)
    sizes = list(dict.fromkeys(batch_sizes))
    out = out or run
    facts: dict[str, str | int] = {"threads": threads or "default"}
    facts |= {title(name): f"left out: {problem}" for name, problem in left_out.items()}
    with open_run(chosen, names) as predictors:
        parity = run_parity(
            predictors, dataset, out, batch_sizes=sizes, limit=limit, limits=limits, run=run, facts=facts
        )
        engines = record_in_engines(parity, predictors[1:], run)
    for warning in parity.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print_tables(parity_table(parity))
    for reason in parity.reasons:
        print(f"failed: {reason}")
    print(f"{'equal' if parity.equal else 'NOT equal'}; wrote {out / 'parity.json'} and {out / 'report.html'}")
    for engine in engines:
        print(f"wrote the figures into {engine_manifest_path(engine)}, too")
    if not parity.equal:
        raise typer.Exit(1)


if __name__ == "__main__":
    run(main)
