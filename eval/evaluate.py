"""PQ, AP and mIoU of one predictor on one data set; the predictions stay on disk in the official COCO formats."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from tqdm import tqdm

from eval.tables import class_table, summary_tables
from upsnet.command_line import options
from upsnet.datasets.coco_format import PredictionWriter
from upsnet.datasets.folder import PanopticFolder, check_categories
from upsnet.datasets.validation_set import open_dataset
from upsnet.errors import InputError
from upsnet.files import write_json
from upsnet.metrics.evaluation import METRICS, Metric, Partial, check_metrics, predict_records
from upsnet.runtimes.open import open_runtime
from upsnet.runtimes.options import RuntimeOptions
from upsnet.runtimes.predictor import Predictor


def evaluate(
    predictor: Predictor,
    dataset: PanopticFolder,
    out: Path,
    batch_size: int = 1,
    metrics: Sequence[Metric] = ("pq",),
) -> dict[str, Any]:
    """Predicts every image, `batch_size` consecutive ones at a time, and scores it against the truth.

    Writes out/predictions.json, out/predictions/*.png, out/pq.json and, with AP, out/instances.json (official COCO
    results), all or none, and returns pq.json's content: "results" and "per_class" as `upsnet pq` has them, "ap" and
    "miou" where asked for, "warnings", and what was measured. Images are streamed; of each, AP keeps run-length codes.
    Raises InputError naming the image, and when data set, metrics and model do not go together.
    """
    check_categories(dataset, predictor.manifest)
    check_metrics(predictor, metrics)
    categories = predictor.manifest.categories_table
    gathered, times = Partial(metrics, categories), []
    answers = predict_records(predictor, dataset, dataset.records, metrics, batch_size)
    title = f"{predictor.name}, batch {batch_size}"
    with PredictionWriter(out, categories) as writer:
        for answer in tqdm(answers, title, len(dataset), unit="image", disable=None):
            gathered.add(answer, categories)
            writer.add(answer.record.image_id, answer.record.file_name, answer.prediction.result)
            times.append(answer.milliseconds)
        if gathered.ap is not None:
            gathered.ap.write(writer.stage / "instances.json")
        report = gathered.report(categories) | {
            "runtime": predictor.name,
            "device": predictor.device_name,
            "kernels": predictor.kernels,
            "model": predictor.manifest.name,
            "gt_json": str(dataset.split.json_file),
            "images": len(dataset),
            "batch_size": batch_size,
            "ms_per_image": statistics.median(times),
        }
        write_json(writer.stage / "pq.json", report)
    return report


def main(
    out: Annotated[Path, typer.Option(help="Folder for predictions and pq.json; it may exist.")],
    runtime: options.RuntimeName = "onnxruntime",
    run: options.Run = Path("runs/demo"),
    metrics: Annotated[
        list[str], typer.Option(help="One or more of pq ap miou (default: all of pytorch, pq of the others).")
    ] = [],  # noqa: B006
    per_class: Annotated[bool, typer.Option("--per-class", help="Print every category's figures too.")] = False,
    flip: Annotated[bool, typer.Option("--flip", help="pytorch: each photo mirrored too, answers averaged.")] = False,
    scales: Annotated[
        list[int], typer.Option(min=1, help="pytorch: short sides to show each photo at (default: the model's own).")
    ] = [],  # noqa: B006
    gt_json: options.GtJson = None,
    gt_folder: options.GtFolder = None,
    images: options.Images = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in one call of the network.")] = 1,
    checkpoint: options.Checkpoint = None,
    model: options.OnnxModel = None,
    engine: options.EngineFile = None,
    url: options.Url = None,
    manifest: options.ServedManifest = None,
    version: options.ServedVersion = None,
    threads: options.Threads = None,
    device: options.Device = None,
) -> None:
    """PQ, box and mask AP and mIoU of one runtime on a data set in the COCO panoptic format."""
    if runtime != "pytorch" and (flip or scales):
        raise InputError(f"--flip and --scales need --runtime pytorch: {runtime} runs the exported graph as it is")
    wanted = parse_metrics(metrics, METRICS if runtime == "pytorch" else ("pq",))
    dataset = open_dataset(gt_json, gt_folder, images, run)
    chosen = RuntimeOptions(
        run,
        runtime,
        checkpoint,
        model,
        url,
        manifest,
        threads,
        device,
        scales,
        flip,
        version=version,
        engine=engine,
    )
    with closing(open_runtime(chosen)) as predictor:
        report = evaluate(predictor, dataset, out, batch_size, wanted)
    for warning in report.get("warnings", []):
        print(f"warning: {warning}", file=sys.stderr)
    console = Console()
    title = f"{runtime} on {report['images']} images; device: {report['device']}"
    console.print(*summary_tables(report, title))
    if per_class:
        console.print(class_table(report, dataset.categories))
    print(f"wrote {out / 'pq.json'}, {out / 'predictions.json'} and {out / 'predictions'}/")


def parse_metrics(names: Sequence[str], default: Sequence[Metric]) -> tuple[Metric, ...]:
    """The metrics of that name, in the usual order; InputError for a name there is not."""
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise InputError(f"no metric {unknown[0]!r}; there are {', '.join(METRICS)}")
    return tuple(metric for metric in METRICS if metric in (names or default))
