"""How fast a configuration trains: its steps against torchvision's Mask R-CNN in the same run, and its loader.

    python -m training.benchmark --config training/configs/coco_r50.yaml --images-per-gpu 4 --parts
    python -m training.benchmark --config training/configs/coco_r50.yaml --data       # the configuration's own photos
    python -m training.benchmark --set compute.compile=true     # compiled, not compiled and torchvision, by turns
    python -m training.benchmark --loader --workers 0 1 2 4
    python -m training.benchmark --loader --shards --workers 0 2   # files in folders against shards, by turns

No weights are downloaded: both networks are untrained, and as frozen as they are with pretrained weights. Both get the
same batches, made up unless --data is given. The panoptic branches come on top of what Mask R-CNN does. Untrained
networks propose fewer foreground boxes than trained ones, to torchvision's advantage: its mask head runs on these
alone, ours on a fixed number of rows.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from pydantic import BaseModel

from training.benchmark.loading import compare_shards, core_parts, loader_rates, open_loader, packed, take_batches
from training.benchmark.memory import most_alive
from training.benchmark.parts import breakdown
from training.benchmark.report import loader_table, parts_table, shards_table, step_table
from training.benchmark.steps import Timed, TorchvisionStep, UpsnetStep, Warm, feed, take_turns, warm_up
from training.benchmark.synthetic import write_panoptic_set
from training.config import Config, load_config
from training.data.coco_panoptic import PanopticDataset
from training.data.loader import fit_workers
from training.data.open import open_training
from training.device import describe_device, open_device
from training.model_config import TimmConfig
from upsnet.command_line.command import run
from upsnet.errors import InputError
from upsnet.files import write_json
from upsnet.machine import machine_facts, package_versions
from upsnet.tables import print_tables

GOAL = 1.3  # times torchvision's images a second, with a ResNet-50 on a GPU
BATCHES = 4  # different ones, again and again
PHOTO = (480, 640)  # height, width of most of COCO's photos
PHOTOS = 48  # of the synthetic set


class StepFigures(BaseModel):
    """What the JSON holds of the steps."""

    batch_shapes: list[list[int]]
    instances: list[int]
    steps: list[Timed]
    ratio: float  # to torchvision's rate
    compiled_ratio: float | None  # with `compute.compile`: of the least times of a turn, not compiled to compiled
    goal: float | None
    parts: dict[str, float] | None
    fed: dict[str, float]


def configure(path: Path, given: Sequence[str], images: int | None, precision: str | None, size: str | None) -> Config:
    """The configuration for one process that takes all images of a step at once."""
    overrides = [*given, f"compute.precision={precision}"] if precision else list(given)
    if size:
        height, width = parse_size(size)
        sides = f"{{short_side: {min(height, width)}, max_side: {max(height, width)}}}"
        overrides += [f"data.resize={sides}", "data.short_sides=[]"]
    schedule = load_config(path, tuple(overrides)).schedule
    images = images or schedule.images_per_gpu or schedule.images_per_step
    return load_config(path, (*overrides, f"schedule.images_per_gpu={images}", "schedule.images_per_step=null"))


def parse_size(text: str) -> tuple[int, int]:
    """HEIGHTxWIDTH -> height, width."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not found:
        raise InputError(f"--size {text}: give HEIGHTxWIDTH in pixels, as 800x1088")
    return int(found[1]), int(found[2])


def measure_steps(
    config: Config, dataset: PanopticDataset, device: torch.device, steps: int, parts: bool, workers: int
) -> StepFigures:
    """Ours and torchvision's by turns; then ours alone, by part where it is asked for, and fed by the loader."""
    if not dataset.categories.num_things:
        raise InputError(f"{config.name}: its categories have no things, so Mask R-CNN has nothing to learn beside it")
    batches = take_batches(dataset, config, min(BATCHES, steps), device)
    ours = warm_up(partial(UpsnetStep, config, dataset.categories, device), batches, device)
    baseline = partial(TorchvisionStep, dataset.categories.num_things, config, device)
    # Torchvision gets the layout that suits it better, whichever that is.
    layouts = [False, True] if device.type == "cuda" else [False]
    baselines = [warm_up(partial(baseline, layout), batches, device) for layout in layouts]
    plain = config.model_copy(update={"compute": config.compute.model_copy(update={"compile": False})})
    compiled = config.compute.compile
    others = [warm_up(partial(UpsnetStep, plain, dataset.categories, device), batches, device)] if compiled else []
    timed = take_turns([ours, *baselines, *others], steps, device)
    best = max(row.images_per_s for row in timed[1 : 1 + len(baselines)])
    if device.type == "cpu":
        warm: list[Warm[Any]] = [ours, *baselines, *others]
        for row, (contender, inputs, *_) in zip(timed, warm, strict=True):
            hidden = compiled and contender is ours.contender
            row.memory_bytes = None if hidden else most_alive(partial(contender.step, inputs[0]))
            contender.finish()
        del warm
    del baselines, others
    by_part = breakdown(ours.contender, batches, steps, device) if parts else None
    rate, waiting = feed(ours.contender, open_loader(dataset, config, 1 + steps, workers, device), device)
    return StepFigures(
        batch_shapes=[list(batch.images.shape) for batch in batches],
        instances=[sum(map(len, batch.boxes)) for batch in batches],
        steps=timed,
        ratio=timed[0].images_per_s / best,
        compiled_ratio=min(timed[-1].seconds) / min(timed[0].seconds) if compiled else None,
        goal=GOAL if is_resnet50(config) and device.type == "cuda" else None,
        parts=by_part,
        fed={"workers": workers, "images_per_s": rate, "waiting_share": waiting},
    )


def is_resnet50(config: Config) -> bool:
    backbone = config.model.backbone
    return isinstance(backbone, TimmConfig) and backbone.name.split(".")[0] == "resnet50"


def show(figures: StepFigures, config: Config, where: str) -> None:
    sizes = " and ".join(sorted({f"{h} x {w}" for _, h, w, _ in figures.batch_shapes}))
    batch = f"batch {config.schedule.images_per_gpu}, {sizes}, {config.compute.precision}"
    print_tables(
        step_table(f"{config.name}: {batch}, on {where}", figures.steps, figures.ratio, figures.compiled_ratio)
    )
    if figures.parts:
        parts = {name: 1e3 * seconds for name, seconds in figures.parts.items()}
        print_tables(parts_table("One step of ours by part", parts, "step"))
    print(
        f"fed by {figures.fed['workers']} loader workers: {figures.fed['images_per_s']:.2f} images a second, "
        f"{100 * figures.fed['waiting_share']:.1f} % of the time waiting for data"
    )
    if figures.goal:
        verdict = "met" if figures.ratio >= figures.goal else "NOT met"
        print(f"{figures.ratio:.2f} times torchvision's images a second; goal {figures.goal}: {verdict}")


def main(
    config: Annotated[Path, typer.Option(help="YAML configuration.")] = Path("training/configs/coco_r50.yaml"),
    steps: Annotated[int, typer.Option(min=1, help="Steps of each that count; with --loader: batches.")] = 50,
    images_per_gpu: Annotated[int | None, typer.Option(min=1, help="Images a step (the configuration's).")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="fp32, tf32, bf16 or fp16 (the configuration's).")] = None,
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH of made-up photos, not resized then.")] = None,
    data: Annotated[bool, typer.Option("--data/--synthetic", help="Its photos, or made-up ones.")] = False,
    parts: Annotated[bool, typer.Option("--parts", help="Also where the time of a step goes.")] = False,
    loader: Annotated[bool, typer.Option("--loader", help="The loader alone.")] = False,
    shards: Annotated[bool, typer.Option("--shards", help="With --loader: folders against shards, by turns.")] = False,
    workers: Annotated[list[int] | None, typer.Option(min=0, help="Loader workers; several with --loader.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key.")] = None,
    out: Annotated[Path, typer.Option(help="JSON to write.")] = Path("runs/bench_train.json"),
) -> None:
    """Measure training steps against torchvision's Mask R-CNN R50-FPN, or the loader (--loader)."""
    settings = configure(config, set_ or [], images_per_gpu, precision, size)
    workers = workers if workers is not None else [fit_workers(settings.data.workers)]
    if data and size:
        raise InputError("--size is for made-up photos; with --data set data.resize instead")
    if parts and settings.compute.compile:
        raise InputError("--parts times the parts of an uncompiled network; add --set compute.compile=false")
    if len(workers) > 1 and not loader:
        raise InputError("--workers takes several numbers with --loader alone")
    if shards and not loader:
        raise InputError("--shards compares loaders: give --loader too")
    target = open_device(device)
    facts = machine_facts() | {"threads": torch.get_num_threads()}
    where = describe_device(target)
    if target.type == "cuda":
        torch.cuda.set_device(target)  # which the loader pins memory for
    else:
        where = f"{where}, {facts['cpu']}, {facts['threads']} threads"
    result: dict[str, Any] = {"machine": facts, "versions": package_versions(), "device": where}
    result["settings"] = {
        "config": settings.name,
        "data": str(settings.data.train.json_file) if data else "synthetic",
        "images": settings.schedule.images_per_gpu,
        "resize": settings.data.resize.model_dump(),
        **settings.compute.model_dump(),
    }
    with ExitStack() as stack:
        if not data:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="upsnet-bench-")))
            split = write_panoptic_set(folder, PHOTOS, parse_size(size) if size else PHOTO, settings.seed)
            settings = settings.model_copy(update={"data": settings.data.model_copy(update={"train": split})})
        dataset = open_training(settings.data, settings.seed)
        if shards:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="upsnet-bench-")))
            other = packed(dataset, place)
            turns = [compare_shards(dataset, other, settings, count, steps, target) for count in workers]
            print_tables(shards_table(f"{settings.name}: the loader alone, on {where}", turns))
            result["shards"] = [each._asdict() | each.ratios() for each in turns]
        elif loader:
            ms = core_parts(dataset, settings, steps)
            rates = loader_rates(dataset, settings, workers, steps, target)
            title = f"{settings.name}: the loader alone, on {where}"
            print_tables(loader_table(title, rates, ms), parts_table("An image on one core", ms, "image"))
            result["loader"], result["core_ms"] = [rate._asdict() for rate in rates], ms
        else:
            figures = measure_steps(settings, dataset, target, steps, parts, workers[0])
            show(figures, settings, where)
            result |= figures.model_dump()
    write_json(out, result)
    print(f"wrote {out}")


if __name__ == "__main__":
    run(main)
