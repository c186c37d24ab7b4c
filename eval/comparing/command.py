"""`upsnet engine compare`: two networks side by side on photos, module by module, and the first place where they part.

upsnet engine compare runs/demo/last.safetensors runs/demo/model.onnx
upsnet engine compare model.onnx model.onnx --kernels auto --kernels off --photo street.jpg
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from eval.comparing.chart import draw
from eval.comparing.compare import compare
from eval.comparing.in_tensorrt import InTensorRT
from eval.comparing.networks import InOnnxRuntime, InPyTorch, Network
from eval.comparing.report import comparison_table, conclusion
from eval.profiling.command import PICTURES
from upsnet.command_line import options
from upsnet.datasets.places import File
from upsnet.datasets.validation_set import open_dataset
from upsnet.errors import InputError
from upsnet.files import check_target, write_bytes
from upsnet.runs import find_run
from upsnet.runtimes.open import find_model
from upsnet.sources import find_sources
from upsnet.tables import print_tables

PHOTOS = 4


def open_network(
    source: Path,
    threads: int | None = None,
    device: str | None = None,
    kernels: str | None = None,
    blocks: bool = False,
) -> Network:
    """A checkpoint, an .onnx file, a TensorRT plan, or a folder that holds one. InputError for anything else, and what
    does not open."""
    runtime, place = find_model(source)
    path = Path(place)
    if runtime == "pytorch":
        return InPyTorch(path, threads, device or "cpu", blocks)
    if runtime == "onnxruntime":
        return InOnnxRuntime(path, threads, kernels, blocks)
    if runtime in ("tensorrt", "tensorrt-rtx"):
        return InTensorRT(path, device, blocks)
    raise InputError(
        f"{source}: a {runtime} model cannot be looked into; give a checkpoint, an .onnx file or an engine"
    )


def find_photos(given: Sequence[Path], sources: Sequence[Path], limit: int) -> list[File]:
    """At most `limit` photos: those given, as files, folders or patterns; else the first of the validation set of the
    run that one of the networks lies in."""
    if given:
        found = (source.path for source in find_sources(given) if not source.is_video)
        return list(islice(found, limit))
    near = [folder for source in sources for folder in (source, source.parent, source.parent.parent)]
    run = next((folder for folder in near if (folder / "config.yaml").is_file()), None)
    if run is None:
        raise InputError("neither network lies in a run that has a validation set: give --photo")
    return [record.photo for record in open_dataset(None, run=run).records[:limit]]


def main(
    a: Annotated[Path, typer.Argument(help="The network to hold the other against: a checkpoint, an .onnx file, ...")],
    b: Annotated[Path, typer.Argument(help="The other one, of any of these kinds.")],
    photo: Annotated[
        list[Path] | None,
        typer.Option(help="Photos, folders or patterns (default: the validation set of the run)."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many photos.")] = PHOTOS,
    kernels: Annotated[
        list[str] | None,
        typer.Option(help="ONNX files: auto (the library) or off (function bodies); twice: for A, then for B."),
    ] = None,
    blocks: Annotated[bool, typer.Option("--blocks", help="Also every block of the backbone's stages.")] = False,
    threads: options.Threads = None,
    device: options.Device = None,
    picture: Annotated[Path | None, typer.Option(help="A picture to write, .png or .svg.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON to write.")] = None,
) -> None:
    """Two networks, module by module, on photos. Exit code 0: equal within the limits, 1: not, 2: bad input."""
    if picture is not None and picture.suffix not in PICTURES:
        raise InputError(f"--picture {picture}: give a file that ends in {' or '.join(PICTURES)}")
    for path in filter(None, (picture, out)):
        check_target(path)
    choices: list[str | None] = [*kernels] if kernels else [None]
    if len(choices) > 2:
        raise InputError("--kernels is given once for both networks, or twice: for A, then for B")
    a, b = (Path(find_run(each)) for each in (a, b))
    photos = find_photos(photo or [], (a, b), limit)
    mine, others = ((source, choices[index % len(choices)]) for index, source in enumerate((a, b)))
    with (
        closing(open_network(mine[0], threads, device, mine[1], blocks=blocks)) as first,
        closing(open_network(others[0], threads, device, others[1], blocks=blocks)) as second,
    ):
        report = compare(first, second, tqdm(photos, desc="comparing", unit="photo", disable=None))
    print_tables(comparison_table(report))
    print(conclusion(report))
    if picture is not None:
        write_bytes(picture, draw(report, picture.suffix[1:]))
        print(f"wrote {picture}")
    if out is not None:
        report.save(out)
        print(f"wrote {out}")
    if not report.equal:
        raise typer.Exit(1)
