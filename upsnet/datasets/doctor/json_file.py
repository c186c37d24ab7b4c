"""The doctor at the folders of a split: where data sets lie, and files that the JSON does not list."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from upsnet import storage
from upsnet.datasets.findings import Finding, Strict
from upsnet.datasets.panoptic_json import read_lists
from upsnet.datasets.split import INDEX, ShardSplit, Split, usual_split
from upsnet.errors import InputError
from upsnet.files import PathLike


def find_splits(folder: PathLike) -> list[Split | ShardSplit]:
    """The data sets in a folder, in its annotations/ and in its gtFine/: X.json with panoptic_X beside it, and
    panoptic_X.json and cityscapes_panoptic_X.json with a folder of that name; and X.shards.json, also behind a URL.

    Raises InputError when there is none.
    """
    place = os.fspath(folder)
    shards: list[Split | ShardSplit] = [
        ShardSplit(shards=storage.join(place, name)) for name in sorted(storage.names(place)) if name.endswith(INDEX)
    ]
    if storage.is_url(place):
        if not shards:
            raise InputError(f"{place}: no data set in shards (NAME{INDEX}), which `upsnet data shards` makes")
        return shards
    places = [Path(folder), Path(folder, "annotations"), Path(folder, "gtFine")]
    found = sorted(path for place in places for path in place.glob("*.json"))
    usual = [Split.usual(path) for path in found]
    splits = [open_split(each.json_file) for each in usual if each.segments.is_dir() or each.images.is_dir()]
    if not splits and not shards:
        raise InputError(
            f"{folder}: no data set in COCO panoptic format: no X.json with a folder panoptic_X, "
            f"nor annotations/panoptic_X.json with a folder of that name; give the JSON with --gt-folder and --images"
        )
    return [*splits, *shards]


def open_split(gt_json: PathLike, gt_folder: Path | None = None, images: Path | None = None) -> Split | ShardSplit:
    """The split of a JSON, in the folders given or the usual ones, or of an index of shards. InputError when a folder
    is missing."""
    split = usual_split(gt_json, gt_folder, images)
    if isinstance(split, ShardSplit):
        return split
    if not (split.segments.is_dir() and split.images.is_dir()):
        read_lists(gt_json, Strict(gt_json))  # a file of another kind has no such folders
    for folder, what in ((split.segments, "the PNGs of"), (split.images, "the photos of")):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; {what} {gt_json} are looked for there unless you say where")
    return split


def in_folders(split: Split | ShardSplit) -> Split:
    """InputError for shards, where files are linked or copied one by one."""
    if isinstance(split, ShardSplit):
        raise InputError(f"{split.shards}: its photos lie in shards; give the JSON of the set in folders")
    return split


def unlisted(kind: str, folder: Path, entries: Iterable[dict[str, str]]) -> Iterator[Finding]:
    """Files in the folder and below that no entry names; hidden ones do not count."""
    listed = {os.path.normpath(entry["file_name"]) for entry in entries}
    for place, _, names in os.walk(folder):
        below = os.path.relpath(place, folder)
        for name in sorted(names):
            if not name.startswith(".") and os.path.normpath(os.path.join(below, name)) not in listed:
                yield Finding(kind, os.path.join(place, name))
