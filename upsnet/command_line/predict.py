"""Panoptic segmentation of your own photos: pictures to look at, and the official COCO format to compute with.

upsnet predict photo.jpg other.png --out somewhere
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from tqdm import tqdm

from upsnet.categories import Categories
from upsnet.datasets.coco_format import PredictionWriter
from upsnet.draw import overlay
from upsnet.errors import InputError
from upsnet.files import staged_folder
from upsnet.photos import read_photo
from upsnet.result import PanopticResult
from upsnet.runtimes.open import open_chosen
from upsnet.runtimes.predictor import Predictor, predict_photos


def predict_files(predictor: Predictor, photos: Sequence[Path], out: Path) -> list[str]:
    """Writes, into `out`, for each photo <stem>_overlay.jpg and predictions/<stem>.png, and predictions.json for all.

    PNG and JSON are official COCO panoptic: the photo's exact size, original category ids, image ids 1 .. n in the
    order given. Every photo is read before the first is predicted, one at a time, so a bad one is an InputError with
    nothing written. Returns what was found, one line a photo.
    """
    check_names(photos, out)
    for path in tqdm(photos, desc="reading", disable=None):
        read_photo(path)
    categories = predictor.manifest.categories_table
    found = []
    with staged_folder(out) as stage, PredictionWriter(stage, categories) as writer:
        for image_id, path in enumerate(tqdm(photos, desc="predicting", disable=None), 1):
            photo = read_photo(path)
            result = predict_photos(predictor, [photo])[0]
            writer.add(image_id, path.name, result)
            Image.fromarray(overlay(photo, result, categories)).save(stage / overlay_name(path), quality=92)
            found.append(f"{path}: {describe(result, categories)}")
    return found


def check_names(photos: Sequence[Path], out: Path) -> None:
    """InputError when two photos would have the same output, or an output would replace one of the photos."""
    by_stem: dict[str, Path] = {}
    for path in photos:
        if path.stem in by_stem:
            raise InputError(f"{by_stem[path.stem]} and {path} would both be written as {path.stem}; rename one")
        by_stem[path.stem] = path
    inputs = {path.resolve() for path in photos}
    for path in photos:
        for output in (out / overlay_name(path), out / "predictions" / f"{path.stem}.png"):
            if output.resolve() in inputs:
                raise InputError(f"{output} is one of the photos and would be replaced; choose another --out")


def overlay_name(photo: Path) -> str:
    return f"{photo.stem}_overlay.jpg"


def describe(result: PanopticResult, categories: Categories) -> str:
    """'3 person, sky, grass': the segments of a result in words, things with their number."""
    counts = Counter(segment.category for segment in result.segments)
    words = [
        f"{count} {categories[index].name}" if categories[index].isthing else categories[index].name
        for index, count in sorted(counts.items(), key=lambda item: (not categories[item[0]].isthing, item[0]))
    ]
    return ", ".join(words) or "nothing found"


def main(
    photos: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Photos, in any format that Pillow reads.")],
    out: Annotated[Path, typer.Option(help="Folder for the results; it may exist.")],
    runtime: Annotated[str, typer.Option(help="pytorch, onnxruntime or triton.")] = "onnxruntime",
    run: Annotated[Path, typer.Option(help="The run whose model is used.")] = Path("runs/demo"),
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
    """Segment photos: a coloured overlay with class names, and COCO panoptic PNG + JSON, for each."""
    predictor = open_chosen(
        runtime, run, checkpoint=checkpoint, model=model, url=url, manifest=manifest, threads=threads
    )
    try:
        for line in predict_files(predictor, photos, out):
            print(line)
    finally:
        predictor.close()
    print(f"wrote {out}/*_overlay.jpg, {out}/predictions.json and {out}/predictions/")

