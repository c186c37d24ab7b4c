"""Panoptic segmentation of your own photos and videos: pictures to look at, and the COCO format to compute with.

upsnet predict photo.jpg holiday/ 'more/*.png' clip.mp4 --out somewhere
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import count, groupby, tee
from pathlib import Path, PurePosixPath
from typing import Annotated

import numpy as np
import typer
from tqdm import tqdm

from upsnet.buckets import check_output
from upsnet.bulk.command import BulkOptions, Here, Runner, predict_listed
from upsnet.bulk.ray_cluster import Actors
from upsnet.command_line import options
from upsnet.datasets.coco_format import PredictionWriter
from upsnet.errors import InputError
from upsnet.files import PathLike, longest_name, write_bytes
from upsnet.model import Model
from upsnet.photo_tensors import MOST_OF_JPEG, encode_overlay, overlay_kind
from upsnet.photos import read_photo
from upsnet.runtimes.open import open_runtime
from upsnet.runtimes.options import RuntimeOptions
from upsnet.runtimes.tls import Tls
from upsnet.sources import Source, expand, find_sources
from upsnet.storage import is_url
from upsnet.video import Video, VideoWriter

LEFT_OUT = 1  # exit status
OF_ACTORS = ("actors", "actor-cpus", "actor-gpus")  # options
SUFFIXES = {"JPEG": "jpg", "PNG": "png"}


def predict_files(model: Model, given: Sequence[PathLike], out: Path, left_out: list[str]) -> Iterator[str]:
    """Predicts photos, videos, and those in folders and patterns; yields what was found, one line each.

    Into `out` come, for a photo, <name>_overlay.jpg and predictions/<name>.png; for a video <name>_overlay.mp4 and
    predictions/<name>/000001.png for each frame; and predictions.json for all. <name> is the file's without suffix,
    with the subfolders below a folder that was given. PNG and JSON are official COCO panoptic: the photo's exact size,
    original category ids, image ids 1 .. n in order.

    All or nothing: `out` is as it was until the last line. Every photo, and every video's beginning, is read before the
    first is predicted. A bad one that was named is an InputError; one in a folder is left out, and its error goes to
    `left_out`. Of a photo its name stays in memory, of a video nothing.
    """
    total, bad = check_sources(given, out)
    left_out += bad.values()
    with (
        PredictionWriter(out, model.categories) as writer,
        tqdm(total=total, desc="predicting", unit="image", disable=None) as bar,
    ):
        image_ids = count(1)
        sources = (each for each in find_sources(given, without=out, warn=False, urls=True) if each.path not in bad)
        for are_videos, group in groupby(sources, key=lambda source: source.is_video):
            predict = _predict_videos if are_videos else _predict_photos
            yield from predict(model, group, writer, image_ids, bar)


def _predict_photos(
    model: Model, sources: Iterator[Source], writer: PredictionWriter, image_ids: Iterator[int], bar: tqdm
) -> Iterator[str]:
    sources, again = tee(sources)  # a server is asked for some while the answers for others are written
    at_once = model.manifest.max_batch if model.runtime == "triton" else 1
    with closing(model.stream((source.photo for source in again), at_once)) as predictions:
        for source, prediction in zip(sources, predictions, strict=True):
            writer.add(next(image_ids), _png_name(source, 1), prediction.result)
            picture = prediction.overlay()
            name = overlay_name(source, picture.size)
            write_bytes(writer.stage / name, encode_overlay(picture))
            bar.update()
            note = (
                ""
                if overlay_kind(picture.size) == "JPEG"
                else f" (overlay as a PNG: a JPEG ends at {MOST_OF_JPEG} pixels a side)"
            )
            yield f"{source}: {prediction.describe()}{note}"


def _predict_videos(
    model: Model, sources: Iterator[Source], writer: PredictionWriter, image_ids: Iterator[int], bar: tqdm
) -> Iterator[str]:
    for source in sources:
        yield _predict_video(model, source, writer, image_ids, bar)


def _predict_video(model: Model, source: Source, writer: PredictionWriter, image_ids: Iterator[int], bar: tqdm) -> str:
    seen: set[int] = set()
    frames = 0
    path = writer.stage / overlay_name(source, (0, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    with Video(source.path) as video, VideoWriter(path, video.rate) as overlays:
        for prediction in model.stream(video):
            frames += 1
            writer.add(next(image_ids), _png_name(source, frames), prediction.result)
            overlays.add(np.asarray(prediction.overlay()))
            seen.update(segment.category for segment in prediction.result.segments)
            bar.update()
    names = [category.name for index, category in enumerate(model.categories) if index in seen]
    return f"{source.path}: {frames} frame{'s' * (frames != 1)}: {', '.join(names) or 'nothing found'}"


def check_sources(given: Sequence[PathLike], out: Path) -> tuple[int, dict[Path, str]]:
    """About how many pictures there are, frames counted; and of folders the files that cannot be read, with the reason.

    InputError for one that was named, where two would be written to the same place, where an output would replace one
    of the photos, and where nothing is left.
    """
    paths = [path.resolve() for path in expand(given) if isinstance(path, Path)]
    files = {path for path in paths if not path.is_dir()}
    folders = [path for path in paths if path.is_dir() and not out.resolve().is_relative_to(path)]
    photos: set[str] = set()
    subfolders: dict[str, bool] = {}  # is it a video's?
    pictures, bad = 0, {}
    longest = longest_name(out)
    for source in tqdm(find_sources(given, without=out, urls=True), desc="reading", unit="file", disable=None):
        above = [str(folder) for folder in PurePosixPath(source.name).parents]
        if source.name in (subfolders if source.is_video else photos) or any(subfolders.get(each) for each in above):
            other = next(
                other for other in find_sources(given, without=out, warn=False, urls=True) if _clash(source, other)
            )
            if other.photo == source.photo:
                raise InputError(f"{source}: given twice")
            raise InputError(f"{other} and {source} would both be written as {other.name}; rename one")
        try:
            size, length = _look_into(source)
            outputs = (out / overlay_name(source, size), out / "predictions" / _png_name(source, 1))
            _check_lengths(source, outputs, longest)
        except InputError as error:
            if not source.in_folder:
                raise
            bad[source.path] = str(error)
            continue
        pictures += length
        subfolders |= {each: False for each in above}
        if source.is_video:
            subfolders[source.name] = True
        else:
            photos.add(source.name)
        for output in outputs:
            place = output.resolve()
            if place in files or (place.exists() and any(place.is_relative_to(folder) for folder in folders)):
                raise InputError(f"{output} is one of the photos and would be replaced; choose another --out")
    if not pictures:
        raise InputError(f"nothing can be read: {next(iter(bad.values()))}")
    return pictures, bad


def _look_into(source: Source) -> tuple[tuple[int, ...], int]:
    """Height and width, and about how many frames. InputError where it cannot be read."""
    if not source.is_video:
        return read_photo(source.photo).shape[:2], 1
    with Video(source.path) as video:
        return next(iter(video)).shape[:2], video.length or 1


def _check_lengths(source: Source, outputs: Sequence[Path], longest: int) -> None:
    """InputError where the system takes no name as long as an output's would be, in bytes."""
    for output in outputs:
        if (length := len(os.fsencode(output.name))) > longest:
            raise InputError(f"{source}: {output.name} has {length} bytes, of at most {longest}; rename it")


def _clash(one: Source, other: Source) -> bool:
    if one.is_video == other.is_video:
        return one.name == other.name
    video, photo = (one, other) if one.is_video else (other, one)
    return photo.name.startswith(f"{video.name}/")


def overlay_name(source: Source, size: tuple[int, ...]) -> str:
    """A JPEG for a photo of that height and width, a PNG where a JPEG cannot be as long; a video for a video."""
    suffix = "mp4" if source.is_video else SUFFIXES[overlay_kind(size)]
    return f"{source.name}_overlay.{suffix}"


def _png_name(source: Source, frame: int) -> str:
    return f"{source.name}/{frame:06}.png" if source.is_video else f"{source.name}.png"


def main(
    *,
    photos: Annotated[
        list[str] | None,  # a Path would make "." of an empty name
        typer.Argument(metavar="IMAGE...", help="Photos, videos, folders of them, or patterns ('photos/**/*.jpg')."),
    ] = None,
    out: Annotated[str, typer.Option(help="Folder for the results; it may exist.")],
    runtime: options.RuntimeName = None,
    run: Annotated[
        str,
        options.run_option(
            "The run, or any model that upsnet.load takes; without --runtime it tells the runtime.", str
        ),
    ] = "runs/demo",
    checkpoint: options.Checkpoint = None,
    model: options.OnnxModel = None,
    engine: options.EngineFile = None,
    url: options.Url = None,
    manifest: options.ServedManifest = None,
    version: options.ServedVersion = None,
    threads: options.Threads = None,
    device: options.Device = None,
    tls_ca: options.TlsCa = None,
    tls_cert: options.TlsCert = None,
    tls_key: options.TlsKey = None,
    photos_from: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Photos by the million: a file with a path or URL a line, or JSON lines. --out, a folder or a URL, "
            "gets blocks instead of pictures; the same command goes on where it was stopped. See docs/many-photos.md.",
        ),
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="--photos-from: this of N workers (default: the only one).")
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="--photos-from: tar (the default) or parquet.", metavar="FORMAT")
    ] = None,
    block: Annotated[int | None, typer.Option(help="--photos-from: photos in one file (default: 1000).")] = None,
    readers: Annotated[
        int | None,
        typer.Option(
            min=1, max=256, help="--photos-from: threads that read, decode and encode (default: cores, at most 8)."
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="--photos-from: on a Ray cluster: auto (the one that this machine is a node of), host:port of its "
            "head, or local (one of this machine alone).",
        ),
    ] = None,
    actors: Annotated[
        int | None,
        typer.Option(min=1, help="--ray: processes that hold the model (default: as many as there is room for)."),
    ] = None,
    actor_cpus: Annotated[
        int | None, typer.Option(min=1, help="--ray: CPU cores for each, and threads in it (default: 1).")
    ] = None,
    actor_gpus: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="--ray: GPUs for each; of 0.5 two share one (default: 1 where the runtime can use one and the "
            "cluster has any).",
        ),
    ] = None,
) -> None:
    """Segment photos and videos: coloured overlays with class names, and COCO panoptic PNG + JSON.

    Exit status 1: files of a folder, or of a list, could not be read and were left out.
    """
    if not out:
        raise InputError("--out is empty: name a folder")
    files = Tls(tls_ca, tls_cert, tls_key)
    tls = files if any(files) else None
    chosen = RuntimeOptions(
        run, runtime, checkpoint, model, url, manifest, threads, device, tls=tls, version=version, engine=engine
    )
    if photos_from is not None:
        if photos:
            raise InputError(f"{photos[0]}: photos are either named or listed; leave it out, or --photos-from")
        check_output(out)
        runner = _runner(chosen, readers, ray, Actors(actors, actor_cpus, actor_gpus))
        left = predict_listed(BulkOptions(photos_from, out, shard, format, block), runner)
        raise typer.Exit(LEFT_OUT if left else 0)
    of_list = {"shard": shard, "format": format, "block": block, "readers": readers, "ray": ray}
    for option, value in (of_list | dict(zip(OF_ACTORS, (actors, actor_cpus, actor_gpus), strict=True))).items():
        if value is not None:
            raise InputError(f"--{option} is for photos of a list; give --photos-from, or leave it out")
    if not photos:
        raise InputError("no photo: name photos, videos, folders or patterns, or a list with --photos-from")
    if is_url(out):
        raise InputError(f"--out {out}: pictures are written to a folder; a URL takes what --photos-from makes")
    folder = Path(out)
    predictor = open_runtime(chosen)
    replaced = (folder / "predictions.json").is_file()
    left_out: list[str] = []
    with Model(predictor) as opened:
        ran = f"{opened.runtime}, device: {opened.device}, kernels: {opened.kernels}"
        for line in predict_files(opened, photos, folder, left_out):
            tqdm.write(line)
    print(f"wrote {out}/: *_overlay.jpg (of a video .mp4), predictions.json and predictions/ ({ran})")
    if replaced:
        print(f"{out}/predictions.json was there and is replaced: what it listed before, it lists no more")
    if left_out:
        for line in left_out:
            print(f"left out: {line}", file=sys.stderr)
        raise typer.Exit(LEFT_OUT)


def _runner(source: RuntimeOptions, readers: int | None, address: str | None, actors: Actors) -> Runner:
    """Who does the blocks: this process, or a Ray cluster."""
    if address is not None:
        from upsnet.bulk.on_ray import OnRay

        return OnRay(address, actors, source, readers)
    for option, value in zip(OF_ACTORS, actors, strict=True):
        if value is not None:
            raise InputError(f"--{option} is for a Ray cluster; give --ray, or leave it out")
    return Here(source, readers)
