"""`upsnet precision-search`: which modules may go down to which types without losing more PQ than allowed.

upsnet precision-search --run runs/demo --max-drop 0.1
upsnet export --checkpoint runs/demo/last.safetensors --recipe runs/demo/precision/recipe.json --calibrate train
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from eval.precision_search.chart import draw
from eval.precision_search.journal import Journal, fingerprint
from eval.precision_search.measure import (
    EngineMeasure,
    Evaluator,
    Measure,
    RoundingMeasure,
    builder_here,
    engines_of,
    rounded,
)
from eval.precision_search.report import AloneRow, PrecisionSearch, Total, search_table
from eval.precision_search.rounding import Rounded
from eval.precision_search.search import Found, check_types, search, types_of
from eval.profiling.gpus import find_gpu
from export.calibration import OWN, find_photos
from export.onnx_export import PHOTOS
from training.checkpoint import load_model
from training.device import open_device
from training.predictor import make_manifest
from upsnet.command_line import options
from upsnet.datasets.validation_set import open_dataset
from upsnet.errors import InputError
from upsnet.files import check_target, sha256, write_bytes
from upsnet.machine import machine_facts, package_versions
from upsnet.manifest import EIGHT_BITS
from upsnet.tables import print_tables

TYPES = ("fp16", "int8")


def groups(network: Rounded, blocks: bool) -> dict[str, bool]:
    """The names that a recipe is made of, and whether any layer of each can have eight bits: the modules themselves, or
    the backbone's stages in place of their blocks."""
    found: dict[str, bool] = {}
    for name in network.modules:
        parts = name.split(".")
        numbered = len(parts) > 2 and parts[0] == "backbone" and parts[-1].isdigit()
        group = ".".join(parts[:-1]) if numbered and not blocks else name
        found[group] = found.get(group, False) or any(
            able and own == name for able, own in zip(network.eligible, network.names, strict=True)
        )
    return found


def main(
    run: options.Run = Path("runs/demo"),
    max_drop: Annotated[float, typer.Option(help="Points of PQ that may be lost; 0.1: from 61.1 to 61.0.")] = 0.1,
    types: Annotated[
        list[str] | None, typer.Option(help="That modules may have: of fp16 bf16 int8 fp8 (default: fp16 int8).")
    ] = None,
    blocks: Annotated[
        bool, typer.Option("--blocks", help="Every block of the backbone by itself, not its stages.")
    ] = False,
    budget: Annotated[int, typer.Option(min=3, help="The most evaluations of the search.")] = 40,
    limit: Annotated[
        int, typer.Option(min=1, help="Images of the search, evenly spaced; what it finds is held against all.")
    ] = 500,
    checkpoint: options.Checkpoint = None,
    gt_json: options.GtJson = None,
    gt_folder: options.GtFolder = None,
    images: options.Images = None,
    calibrate: Annotated[str, typer.Option(metavar="DATASET", help="As `upsnet export` takes it.")] = OWN,
    photos: Annotated[int, typer.Option(min=1, help="To calibrate on.")] = PHOTOS,
    gpu: Annotated[
        str | None,
        typer.Option(
            help="Round in PyTorch, and estimate the time by this GPU's data sheet (default: h200 where this "
            "machine cannot run an engine, else its engines)."
        ),
    ] = None,
    threads: options.Threads = None,
    device: options.Device = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of recipe.json, precision_search.json and .png (default: RUN/precision)."),
    ] = None,
) -> None:
    """Find which modules may have narrower types, by PQ. Interrupted and started again, it goes on."""
    if not 0 <= max_drop <= 100:  # nor NaN
        raise InputError(f"--max-drop {max_drop:g}: points of PQ, from 0 to 100")
    wanted = check_types(types or TYPES)
    folder = out or run / "precision"
    for path in (*files_of(folder, True), *files_of(folder, False)):
        check_target(path)
    source = Path(checkpoint or run / "last.safetensors")
    if threads is not None:
        torch.set_num_threads(threads)
    dataset = open_dataset(gt_json, gt_folder, images, run)
    model, config, categories, _ = load_model(source)
    manifest = make_manifest(config, categories)
    chosen = find_photos(calibrate, config, photos)
    backend = None if gpu else builder_here()
    subject: dict[str, Any] = {
        "checkpoint": sha256(source),
        "data set": fingerprint(
            [dataset.split.json_file, *(path for each in dataset.records for path in (each.photo, each.png))],
            "data set",
        ),
        "calibration": fingerprint(chosen.paths, "photos to calibrate on"),
        "way of measuring": engines_of(backend) if backend else f"rounding, {find_gpu(gpu or 'h200').source}",
    }
    journal = Journal(folder / "evaluations.jsonl", subject)
    network = rounded(model, manifest)
    measure: Measure
    if backend:
        measure = EngineMeasure(source, backend, calibrate, photos)
    else:
        place = open_device(device or "auto")
        measure = RoundingMeasure(network, manifest, chosen.paths, find_gpu(gpu or "h200"), place)
    evaluate = Evaluator(measure, journal, dataset, limit, budget)
    able = {name: types_of(wanted, eligible) for name, eligible in groups(network, blocks).items()}
    try:
        found = search(evaluate, able, [each for each in wanted if each not in EIGHT_BITS], max_drop, evaluate.note)
    except KeyboardInterrupt:
        evaluate.close()
        print(f"{len(journal.evaluations)} evaluations are in {journal.path}; the same command goes on from there")
        raise
    evaluate.close()
    report = make_report(found, measure, evaluate, journal, manifest.name, max_drop)
    files = files_of(folder, found.complete)
    found.recipe.save(files[0])
    report.save(files[1])
    write_bytes(files[2], draw(report, journal.evaluations))
    print_tables(search_table(report))
    if found.complete:
        for path in files_of(folder, False):
            path.unlink(missing_ok=True)
    else:
        print(
            f"the budget of {budget} evaluations ended before the search did, with {len(found.undecided)} modules "
            "undecided; a larger --budget goes on from here"
        )
    about = "an estimate by its layers" if measure.estimated else "measured"
    print(f"{100 * report.found.time / report.float32.time:.0f} % of float32's time ({about}), PQ {-report.drop:+.2f}")
    print(f"wrote {files[0]}, {files[1].name} and {files[2].name}")
    following = ["upsnet", "export", "--checkpoint", str(source), "--recipe", str(files[0])]
    print("next:", shlex.join(following + ["--calibrate", calibrate] * bool(found.recipe.types & set(EIGHT_BITS))))


def files_of(folder: Path, complete: bool) -> list[Path]:
    """Recipe, report and picture. What an unfinished search found says so in its name, and replaces no finished one."""
    names = (("recipe", "json"), ("precision_search", "json"), ("precision_search", "png"))
    return [folder / f"{name}{'' if complete else '.unfinished'}.{suffix}" for name, suffix in names]


def make_report(
    found: Found, measure: Measure, evaluate: Evaluator, journal: Journal, model: str, max_drop: float
) -> PrecisionSearch:
    return PrecisionSearch(
        model=model,
        how=measure.how,
        unit=measure.unit,
        estimated=measure.estimated,
        max_drop=max_drop,
        images=evaluate.images,
        searched_images=evaluate.searched_images,
        evaluations=len(journal.evaluations),
        complete=found.complete,
        undecided=found.undecided,
        recipe=found.recipe,
        float32=Total(**found.reference._asdict()),
        found=Total(**found.figures._asdict()),
        alone=[AloneRow(**each._asdict()) for each in found.alone],
        machine=machine_facts(),
        versions=package_versions(),
    )
