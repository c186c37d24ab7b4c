"""The data set that a figure is measured on."""

from __future__ import annotations

import sys
from pathlib import Path

from upsnet.datasets.folder import PanopticFolder
from upsnet.datasets.split import ShardSplit, Split, as_split, usual_split
from upsnet.errors import InputError
from upsnet.files import PathLike
from upsnet.storage import is_url


def open_dataset(
    gt_json: PathLike | None, gt_folder: Path | None = None, images: Path | None = None, run: Path | None = None
) -> PanopticFolder:
    """The data set the user names, else the validation set in the run's config.yaml. Prints what is odd about it."""
    folder = PanopticFolder(_split(gt_json, gt_folder, images, run))
    for line in folder.warnings:
        print(f"warning: {line}", file=sys.stderr)
    return folder


def _split(
    gt_json: PathLike | None, gt_folder: Path | None, images: Path | None, run: Path | None
) -> Split | ShardSplit:
    if gt_json is not None:
        return usual_split(gt_json, gt_folder, images)
    if gt_folder or images:
        raise InputError("--gt-folder and --images go with --gt-json: give it too")
    config = run / "config.yaml" if run else None
    if config is None or not config.is_file():
        raise InputError(f"no data set: give --gt-json{f' ({config} is missing)' if config else ''}")
    try:
        import yaml
    except ImportError as error:
        raise InputError(f"{config} is YAML ({error}): pip install 'upsnet-trt[data]', or give --gt-json") from None
    try:
        split = as_split(yaml.safe_load(config.read_text(encoding="utf-8"))["data"]["val"])
    except (yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError):  # ValueError: also what is not UTF-8
        raise InputError(f"{config}: names no validation set (data.val); give --gt-json") from None
    place = split.json_file
    if not is_url(place) and not Path(place).exists():
        there = "" if Path(place).is_absolute() else "start the command where the run was trained, or "
        raise InputError(f"{place}: not there, and {config} names it as the validation set; {there}give --gt-json")
    return split
