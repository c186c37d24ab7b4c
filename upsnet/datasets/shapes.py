"""`shapes`: a small synthetic data set in the official COCO panoptic format, the same on every machine.

Four shape classes (things) in clusters that touch and overlap, four textures (stuff), thin void seams, 24-bit ids and
some crowds. Most things touch others of their class: connected components of perfect semantics are not enough here.

`--hard`: more of them, a threefold range of sizes, thin and bent things, more overlap, and classes that only context
tells apart (synthetic/settings.py): a bead is a disk in a row of disks; grit is of one class beside checks and of
another beside dots; weave is of one class where the picture is lit from above, of another where it is lit from below.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from upsnet.datasets.coco_format import id2rgb
from upsnet.datasets.progress import progress_bar
from upsnet.datasets.scene import SIZES, draw_scene
from upsnet.datasets.synthetic.settings import EASY, HARD, Setting
from upsnet.errors import InputError
from upsnet.files import read_json, write_json, writing, writing_only
from upsnet.photos import write_png

COUNTS = {"train": 600, "val": 100}
FIRST_INDEX = {"train": 0, "val": 1_000_000}  # splits share no scene, whatever their counts
LEAST_SIDE = 64
STAMP = "shapes.json"


def write_shapes(
    folder: Path,
    counts: Mapping[str, int] = COUNTS,
    seed: int = 0,
    sizes: Sequence[tuple[int, int]] = SIZES,
    progress: bool = True,
    hard: bool = False,
) -> Path:
    """Write the data set, or its harder sister, unless `folder` already holds it; returns `folder`.

    folder/{train,val}.json, folder/{train,val}/%012d.png (photos), folder/panoptic_{train,val}/%012d.png (segment ids).
    An image depends on (seed, split, its number, sizes, hard) alone. sizes: (height, width) to draw from, sides >= 64
    pixels.
    The folder appears in one rename. Raises InputError for bad arguments and where `folder` holds anything else.
    """
    folder = Path(folder)
    check_arguments(counts, seed, sizes)
    setting = HARD if hard else EASY
    stamp = {"version": setting.version, "seed": seed, "counts": dict(counts), "sizes": [list(size) for size in sizes]}
    if hard:
        stamp["setting"] = setting.name
    if (folder / STAMP).is_file():
        if read_json(folder / STAMP) == stamp and is_whole(folder, counts):
            return folder
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: exists and is not a shapes data set; give another folder or remove it")
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with writing_only(folder, building / "new"):
            for split, count in counts.items():
                write_split(building / "new", split, count, seed, sizes, setting, progress)
            write_json(building / "new" / STAMP, stamp)
        with writing(folder):
            if folder.exists():
                os.rename(folder, building / "old")
            os.rename(building / "new", folder)
    finally:
        shutil.rmtree(building)
    return folder


def is_whole(folder: Path, counts: Mapping[str, int]) -> bool:
    """Whether as many files are there as were written."""
    return all(
        (folder / f"{split}.json").is_file()
        and all(len(list((folder / name).glob("*.png"))) >= count for name in (split, f"panoptic_{split}"))
        for split, count in counts.items()
    )


def check_arguments(counts: Mapping[str, int], seed: int, sizes: Sequence[tuple[int, int]]) -> None:
    limit = FIRST_INDEX["val"]
    for split, count in counts.items():
        if split not in FIRST_INDEX:
            raise InputError(f"shapes: no split '{split}'; the splits are {', '.join(FIRST_INDEX)}")
        if not 1 <= count <= limit:
            raise InputError(f"shapes: {count} images in '{split}'; give from 1 to {limit}")
    if not counts or seed < 0:
        raise InputError(f"shapes: give at least one split and a seed from 0 up, not {list(counts)} and {seed}")
    if not sizes or min(min(size) for size in sizes) < LEAST_SIDE:
        raise InputError(f"shapes: image sizes {list(sizes)}; give at least one, with sides from {LEAST_SIDE} pixels")


def write_split(
    folder: Path,
    split: str,
    count: int,
    seed: int,
    sizes: Sequence[tuple[int, int]],
    setting: Setting,
    progress: bool,
) -> None:
    """Write the photos, the label PNGs and the JSON of one split. An image's id is its scene's index + 1."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    first = FIRST_INDEX[split]
    indices = range(first, first + count)
    for index in progress_bar(indices, total=count, title=f"{setting.name} {split}", shown=progress):
        scene = draw_scene(seed, index, sizes, setting)
        name = f"{index + 1:012d}.png"
        write_png(folder / split / name, scene.image)
        write_png(folder / f"panoptic_{split}" / name, id2rgb(scene.ids))
        height, width = scene.ids.shape
        images.append({"id": index + 1, "file_name": name, "height": height, "width": width})
        annotations.append({"image_id": index + 1, "file_name": name, "segments_info": scene.segments})
    info = {"description": f"{setting.name} ({split}), synthetic", "version": str(setting.version), "seed": seed}
    content = {"info": info, "images": images, "annotations": annotations, "categories": setting.categories}
    write_json(folder / f"{split}.json", content)


def main(
    out: Annotated[
        Path | None, typer.Option(help="Where the data set goes: data/shapes, or data/shapes_hard, with --hard.")
    ] = None,
    train: Annotated[int, typer.Option(help="Training images.")] = COUNTS["train"],
    val: Annotated[int, typer.Option(help="Validation images.")] = COUNTS["val"],
    seed: Annotated[int, typer.Option(help="Another seed gives another data set.")] = 0,
    hard: Annotated[
        bool, typer.Option("--hard", help="The harder one: thin things, more overlap, classes that only context tells.")
    ] = False,
) -> None:
    """Make the synthetic panoptic data set `shapes`; nothing is done where it is there already."""
    out = out or Path("data") / (HARD if hard else EASY).name
    write_shapes(out, {"train": train, "val": val}, seed, hard=hard)
    print(f"{out}: {train} training and {val} validation images")
