"""An official COCO 2017 download, unpacked and checked; nothing is fetched.

upsnet data coco FOLDER: train2017/, val2017/, annotations/panoptic_{train,val}2017.json and the folders of their PNGs,
or the official archives in FOLDER (or FOLDER/annotations), which are unpacked. `upsnet data check FOLDER` then looks
into every file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from upsnet.datasets.archives import config_lines, names_in, unzip_file, unzip_folder
from upsnet.datasets.doctor.check import FOUND_ERRORS
from upsnet.datasets.findings import Strict
from upsnet.datasets.panoptic_json import read_lists
from upsnet.datasets.split import Split
from upsnet.errors import InputError

IMAGES = {"train2017": 118_287, "val2017": 5_000}
THINGS, STUFF = 80, 53
PANOPTIC = "panoptic_annotations_trainval2017.zip"
SITE = "http://images.cocodataset.org"


class Outcome(NamedTuple):
    """What is there and what is wrong, in lines."""

    counts: list[str]
    warnings: list[str]
    errors: list[str]


def prepare(folder: Path, splits: tuple[str, ...], partial: bool) -> Outcome:
    """Unpacks what is still packed and checks all. `partial`: other counts than the official ones are a warning."""
    outcome = Outcome([], [], [])
    for split in splits:
        missing = unpack(folder, split)
        outcome.errors.extend(missing)
        if not missing:
            check_counts(folder, split, outcome, partial)
    return outcome


def open_official(folder: Path, split: str) -> Split:
    return Split.usual(folder / "annotations" / f"panoptic_{split}.json")


def unpack(folder: Path, split: str) -> list[str]:
    """Makes the split's photos, JSON and PNGs out of archives where needed; returns what is missing, one line each."""
    paths = open_official(folder, split)
    inner = f"panoptic_{split}.zip"  # the PNGs' archive, itself a member of PANOPTIC
    panoptic = _archive(folder, PANOPTIC)
    missing = []
    if not paths.images.is_dir():
        if archive := _archive(folder, f"{split}.zip"):
            unzip_folder(archive, paths.images)
        else:
            missing.append(f"{paths.images}: no such folder; it comes from {SITE}/zips/{split}.zip")
    if not paths.json_file.is_file() and not _member(panoptic, paths.json_file):
        missing.append(f"{paths.json_file}: no such file; it comes from {SITE}/annotations/{PANOPTIC}")
    if not paths.segments.is_dir():
        if not _archive(folder, inner):
            _member(panoptic, paths.json_file.with_name(inner))
        if archive := _archive(folder, inner):
            unzip_folder(archive, paths.segments)
        else:
            missing.append(
                f"{paths.segments}: no such folder; it comes from annotations/{inner} "
                f"inside {SITE}/annotations/{PANOPTIC}"
            )
    return missing


def _archive(folder: Path, name: str) -> Path | None:
    found = [place / name for place in (folder, folder / "annotations") if (place / name).is_file()]
    return found[0] if found else None


def _member(panoptic: Path | None, target: Path) -> bool:
    """Unpacks annotations/<name> of the official archive to `target`; False where there is no such archive."""
    if panoptic is None:
        return False
    member = f"annotations/{target.name}"
    if member not in names_in(panoptic):
        raise InputError(f"{panoptic}: has no {member}; it is not the official file")
    unzip_file(panoptic, member, target)
    return True


def check_counts(folder: Path, split: str, outcome: Outcome, partial: bool) -> None:
    """Counts of photos, annotations, PNGs and categories, and whether every file that the JSON lists is there."""
    paths = open_official(folder, split)
    listed = read_lists(paths.json_file, Strict(paths.json_file))
    assert listed is not None  # for it stops where there are none
    photos, pngs = ({entry.name for entry in os.scandir(place)} for place in (paths.images, paths.segments))
    counts = {
        f"photos in {paths.images}": sum(name.endswith(".jpg") for name in photos),
        f"images in {paths.json_file}": len(listed["images"]),
        f"annotations in {paths.json_file}": len(listed["annotations"]),
        f"PNGs in {paths.segments}": sum(name.endswith(".png") for name in pngs),
    }
    cure = "" if partial else " (--partial accepts a part of the data)"
    for what, count in counts.items():
        outcome.counts.append(f"{split}: {count:,} {what}")
        if count != IMAGES[split]:
            wrong = outcome.warnings if partial else outcome.errors
            wrong.append(f"{count:,} {what}; the official number is {IMAGES[split]:,}{cure}")
    for key, names, place in (("images", photos, paths.images), ("annotations", pngs, paths.segments)):
        lost = sorted({_name(entry) for entry in listed[key]} - names)
        if lost:
            outcome.errors.append(f"{place}: lacks {len(lost):,} files of {paths.json_file}, the first is {lost[0]}")
    things = sum(isinstance(c, dict) and c.get("isthing") == 1 for c in listed["categories"])
    stuff = len(listed["categories"]) - things
    if (things, stuff) != (THINGS, STUFF):
        found = f"{things} thing and {stuff} stuff categories"
        outcome.errors.append(f"{paths.json_file}: {found}, not {THINGS} and {STUFF}")


def _name(entry: object) -> str:
    return str(entry.get("file_name") if isinstance(entry, dict) else None)


def main(
    folder: Annotated[Path, typer.Argument(help="The download: archives or folders.", show_default=False)],
    split: Annotated[list[str], typer.Option(help="Which: train2017, val2017.")] = list(IMAGES),  # noqa: B006
    partial: Annotated[bool, typer.Option("--partial", help="Accept a part of the official images.")] = False,
) -> None:
    """Unpack and check an official COCO 2017 download. Exit status: 0 all there, 1 something is wrong, 2 bad use."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    unknown = [name for name in split if name not in IMAGES]
    if unknown:
        raise InputError(f"--split {unknown[0]}: the splits are {', '.join(IMAGES)}")
    outcome = prepare(folder, tuple(split), partial)
    for line in outcome.counts:
        typer.echo(line)
    for level, lines in (("warning", outcome.warnings), ("error", outcome.errors)):
        for line in lines:
            typer.echo(f"{level}: {line}", err=True)
    if outcome.errors:
        raise typer.Exit(FOUND_ERRORS)
    typer.echo("\nFor a configuration:\n" + config_lines({name[:-4]: open_official(folder, name) for name in split}))
