"""`upsnet engine profile`: where the time of a model goes, by module and by operator, in the runtime that it is for.

upsnet engine profile --model runs/demo --photo street.jpg
upsnet engine profile --model r50.onnx --size 800x1088 --batch 4 --out profile.json
upsnet engine profile --model runs/demo --runtime pytorch --gpu h200
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from eval.profiling.chart import draw
from eval.profiling.gpus import PUBLISHED, find_gpu
from eval.profiling.least import least_on, least_table
from eval.profiling.report import Profile, profile_table
from eval.profiling.subjects import Wanted, open_subject
from eval.profiling.summary import summarize
from upsnet.command_line import options
from upsnet.errors import InputError
from upsnet.files import check_target, write_bytes
from upsnet.geometry import NetworkBatch, ResizeRule, collate, to_network
from upsnet.machine import machine_facts, package_versions
from upsnet.photos import read_photo
from upsnet.runtimes.open import find_model
from upsnet.tables import print_tables

PICTURES = (".png", ".svg")
MOST_PIXELS = 2**26  # of a batch


def make_batch(rule: ResizeRule, photo: Path | None, size: str | None, batch: int) -> NetworkBatch:
    """The photo `batch` times, resized by the model's rule; or noise of the size "HEIGHTxWIDTH" in network pixels,
    without one that of a photo of 4 to 3.

    InputError for a photo that cannot be read, and a size that the network cannot have.
    """
    if photo is not None:
        if size is not None:
            raise InputError("--photo has a size of its own; leave --size out")
        return collate([to_network(read_photo(photo), rule)] * batch)
    height, width = rule.padded_size(*rule.network_size(3 * rule.short_side, 4 * rule.short_side))
    if size is not None:
        match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size)
        if match is None:
            raise InputError(f"--size {size}: give HEIGHTxWIDTH in network pixels, as 800x1088")
        height, width = (int(side) for side in match.groups())
        if not (height and width) or rule.padded_size(height, width) != (height, width):
            raise InputError(f"--size {size}: give multiples of {rule.divisor}, which is what the network gets")
    if batch * height * width > MOST_PIXELS:
        raise InputError(f"a batch of {batch} x {height} x {width} pixels is over {MOST_PIXELS}; give a smaller one")
    images = np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), np.uint8)
    return NetworkBatch(images, np.array([[height, width]] * batch, np.int32), np.ones(batch, np.float32))


def main(
    model: Annotated[
        Path, typer.Option(help="A run's or an engine's folder, an .onnx file, a checkpoint or a TensorRT plan.")
    ] = Path("runs/demo"),
    runtime: options.RuntimeName = None,
    photo: Annotated[Path | None, typer.Option(help="What the network looks at (default: noise).")] = None,
    size: Annotated[
        str | None, typer.Option(help="Without a photo: HEIGHTxWIDTH in network pixels, as 800x1088.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images in one call of the network.")] = 1,
    threads: Annotated[int, typer.Option(min=1, max=256, help="CPU threads.")] = 2,
    runs: Annotated[int, typer.Option(min=1, help="Calls that are counted.")] = 20,
    kernels: Annotated[
        list[str] | None,
        typer.Option(
            help="onnxruntime: one or both of auto (the library of operators) and off (function bodies); default: both."
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="pytorch: cpu (the default) or cuda:N; TensorRT: cuda:N.")] = None,
    gpu: Annotated[
        str | None,
        typer.Option(help=f"Also the least time on a GPU, as published: {', '.join(PUBLISHED)}."),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="The picture, .png or .svg (default: profile.png beside the model).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON to write.")] = None,
) -> None:
    """Time by module and operator, with MACs, bytes and what the machine could do at best: a table and a picture."""
    name, file = find_model(model, runtime)
    path = Path(file)
    target = picture or path.with_name("profile.png")
    if target.suffix not in PICTURES:
        raise InputError(f"--picture {target}: give a file that ends in {' or '.join(PICTURES)}")
    for path_of_ours in filter(None, (target, out)):
        check_target(path_of_ours)
    limits = find_gpu(gpu) if gpu else None
    wanted = Wanted(path, threads, device, runs, kernels, limits)
    subject = open_subject(name, wanted)
    feed = make_batch(subject.manifest.resize, photo, size, batch)
    profiled = subject.profile(feed)
    report = Profile(
        machine=machine_facts(),
        versions=package_versions(),
        model=str(model),
        shape=list(feed.images.shape),
        threads=threads,
        runs=runs,
        roofline=profiled.roofline,
        variants=[summarize(*each, profiled.roofline) for each in profiled.recordings],
        runtime=name,
        device=profiled.device,
        least=least_on(limits, *profiled.works(feed)) if limits else None,
    )
    print_tables(profile_table(report))
    if report.least is not None:
        print_tables(least_table(report.least, batch))
    write_bytes(target, draw(report, target.suffix[1:]))
    print(f"wrote {target}")
    if out is not None:
        report.save(out)
        print(f"wrote {out}")
