"""The doctor at the folders of a split: where data sets lie, and files that the JSON does not list."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from upsnet.datasets.findings import Finding, Strict
from upsnet.datasets.panoptic_json import read_lists
from upsnet.datasets.split import Split
from upsnet.errors import InputError


def find_splits(folder: Path) -> list[Split]:
    """The data sets in a folder, in its annotations/ and in its gtFine/: X.json with panoptic_X beside it, and
    panoptic_X.json and cityscapes_panoptic_X.json with a folder of that name.

    Raises InputError when there is none.
    """
    places = [folder, folder / "annotations", folder / "gtFine"]
    found = sorted(path for place in places for path in place.glob("*.json"))
    usual = [Split.usual(path) for path in found]
    splits = [open_split(each.json_file) for each in usual if each.segments.is_dir() or each.images.is_dir()]
    if not splits:
        raise InputError(
            f"{folder}: no data set in COCO panoptic format: no X.json with a folder panoptic_X, "
            f"nor annotations/panoptic_X.json with a folder of that name; give the JSON with --gt-folder and --images"
        )
    return splits


def open_split(gt_json: Path, gt_folder: Path | None = None, images: Path | None = None) -> Split:
    """The split of a JSON, in the folders given or the usual ones. InputError when one is missing."""
    split = Split.usual(gt_json, gt_folder, images)
    if not (split.segments.is_dir() and split.images.is_dir()):
        read_lists(gt_json, Strict(gt_json))  # a file of another kind has no such folders
    for folder, what in ((split.segments, "the PNGs of"), (split.images, "the photos of")):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; {what} {gt_json} are looked for there unless you say where")
    return split


def unlisted(kind: str, folder: Path, entries: Iterable[dict[str, str]]) -> Iterator[Finding]:
    """Files in the folder and below that no entry names; hidden ones do not count."""
    listed = {os.path.normpath(entry["file_name"]) for entry in entries}
    for place, _, names in os.walk(folder):
        below = os.path.relpath(place, folder)
        for name in sorted(names):
            if not name.startswith(".") and os.path.normpath(os.path.join(below, name)) not in listed:
                yield Finding(kind, os.path.join(place, name))
