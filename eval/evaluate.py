"""PQ of one predictor on one data set; the predictions stay on disk in the official COCO panoptic format."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from eval.pq_stat import PQStat
from eval.runtimes import open_chosen
from eval.staging import staged_folder
from panoptic.categories import Categories
from panoptic.cli import run
from panoptic.coco_format import PredictionWriter
from panoptic.dataset import PanopticFolder, Record, check_categories, groups, open_dataset
from panoptic.files import write_json
from panoptic.geometry import collate, to_network
from panoptic.predictor import Predictor
from panoptic.result import PanopticResult, decode


def evaluate(predictor: Predictor, dataset: PanopticFolder, out: Path, batch_size: int = 1) -> dict[str, Any]:
    """Predicts every image, `batch_size` consecutive ones at a time, and scores it against the truth.

    Writes out/predictions.json, out/predictions/*.png and out/pq.json, all or none, and returns pq.json's content:
    "results" and "per_class" as eval/pq.py has them, "warnings", and what was measured. Images are streamed.
    Raises InputError naming the image, and when the data set's categories are not the model's.
    """
    check_categories(dataset, predictor.manifest)
    categories = predictor.manifest.categories_table
    stat, times = PQStat(), []
    progress = tqdm(total=len(dataset), desc=f"{predictor.name}, batch {batch_size}", unit="image", disable=None)
    with progress, staged_folder(out) as stage:
        with PredictionWriter(stage, categories) as writer:
            for group in groups(dataset.records, batch_size):
                photos, truths = zip(*(dataset.read(record) for record in group), strict=True)
                results, milliseconds = predict_timed(predictor, photos)
                times.append(milliseconds / len(group))
                for record, ids, result in zip(group, truths, results, strict=True):
                    score(stat, record, ids, result, categories)
                    writer.add(record.image_id, record.file_name, result)
                progress.update(len(group))
        report = stat.results(categories) | {
            "warnings": stat.warnings,
            "runtime": predictor.name,
            "model": predictor.manifest.name,
            "gt_json": str(dataset.gt_json),
            "images": len(dataset),
            "batch_size": batch_size,
            "ms_per_image": statistics.median(times),
        }
        write_json(stage / "pq.json", report)
    return report


def predict_timed(predictor: Predictor, photos: Sequence[np.ndarray]) -> tuple[list[PanopticResult], float]:
    """The photos as one batch -> their results, and the milliseconds of the predictor's own call."""
    nets = [to_network(photo, predictor.manifest.resize) for photo in photos]
    batch = collate(nets)
    start = time.perf_counter()
    raw = predictor.predict(*batch)
    milliseconds = 1e3 * (time.perf_counter() - start)
    results = [
        decode(panoptic, segments, int(count), net) for panoptic, segments, count, net in zip(*raw, nets, strict=True)
    ]
    return results, milliseconds


def score(stat: PQStat, record: Record, ids: np.ndarray, result: PanopticResult, categories: Categories) -> None:
    """Adds one image to `stat`: truth ids H x W against a result with contiguous categories."""
    predicted = [{"id": segment.id, "category_id": categories[segment.category].id} for segment in result.segments]
    stat.accumulate(ids, record.segments, result.ids, predicted, image=record.image_id)


def pq_table(report: dict[str, Any], title: str) -> Table:
    """PQ, SQ and RQ in points for all, things and stuff."""
    table = Table(title=title, box=SIMPLE)
    for heading in ("", "PQ", "SQ", "RQ", "classes"):
        table.add_column(heading, justify="right" if heading else "left")
    for group, figures in report["results"].items():
        cells = ["–" if figures[key] is None else f"{100 * figures[key]:.1f}" for key in ("pq", "sq", "rq")]
        table.add_row(group, *cells, str(figures["n"]))
    return table


def main(
    out: Annotated[Path, typer.Option(help="Folder for predictions and pq.json; it may exist.")],
    runtime: Annotated[str, typer.Option(help="pytorch, onnxruntime or triton.")] = "onnxruntime",
    run: Annotated[Path, typer.Option(help="The run: its model, and its validation set.")] = Path("runs/demo"),
    gt_json: Annotated[Path | None, typer.Option(help="COCO panoptic JSON of another data set.")] = None,
    gt_folder: Annotated[Path | None, typer.Option(help="Its truth PNGs (default: panoptic_<name> beside it).")] = None,
    images: Annotated[
        Path | None, typer.Option(help="Its photos (default: <name> beside it; official COCO: beside its folder).")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in one call of the network.")] = 1,
    checkpoint: Annotated[Path | None, typer.Option(help="pytorch: instead of the run's last.safetensors.")] = None,
    model: Annotated[Path | None, typer.Option(help="onnxruntime: another model than the run's model.onnx.")] = None,
    url: Annotated[
        str | None, typer.Option(help="triton: host:port of the server's gRPC (default: 127.0.0.1:8001).")
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="triton: the served model's manifest (default: triton_repo's).")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of pytorch and onnxruntime.")] = None,
) -> None:
    """PQ of one runtime on a data set in the COCO panoptic format."""
    dataset = open_dataset(gt_json, gt_folder, images, run)
    predictor = open_chosen(
        runtime, run, checkpoint=checkpoint, model=model, url=url, manifest=manifest, threads=threads
    )
    try:
        report = evaluate(predictor, dataset, out, batch_size)
    finally:
        predictor.close()
    for warning in report["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    Console().print(pq_table(report, f"{runtime} on {report['images']} images"))
    print(f"wrote {out / 'pq.json'}, {out / 'predictions.json'} and {out / 'predictions'}/")


if __name__ == "__main__":
    run(main)
