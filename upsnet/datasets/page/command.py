"""upsnet data show FOLDER_OR_JSON [--out show.html]"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from upsnet.datasets.doctor.check import check_split, choose_splits, compare_categories
from upsnet.datasets.findings import Tally
from upsnet.datasets.maker import origin
from upsnet.datasets.page.page import Selection, check_names, write_page
from upsnet.datasets.panoptic_json import PanopticJson
from upsnet.datasets.parallel import usable_cores
from upsnet.datasets.split import ShardSplit, Split
from upsnet.errors import InputError
from upsnet.files import check_target
from upsnet.storage import is_url

NAME = "show.html"


def main(
    data: Annotated[
        str,
        typer.Argument(
            help="A folder with data sets, the JSON of one, or the index of one in shards; the latter may be a URL.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help=f"The page; default: {NAME} in the folder, or beside the JSON.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Pictures of each split.")] = 60,
    seed: Annotated[int, typer.Option(help="Of the lot that chooses images without findings.")] = 0,
    only_findings: Annotated[
        bool, typer.Option("--only-findings", help="Pictures only of images with findings.")
    ] = False,
    category: Annotated[
        list[str] | None, typer.Option(help="Pictures only of images with this category (may be repeated).")
    ] = None,
    gt_folder: Annotated[Path | None, typer.Option(help="The PNGs; default: beside the JSON.")] = None,
    images: Annotated[Path | None, typer.Option(help="The photos; default: where COCO has them.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one for each core.")] = None,
) -> None:
    """Write a page of photos with their segments, histograms of classes and sizes, and what `upsnet data check` finds.

    The page holds all that it shows: open it in a browser, or send it. Images with findings come first. Of a folder,
    a data set from which `upsnet data split` made others there is left out: they show its images.
    """
    if is_url(data) and out is None:
        raise InputError(f"{data}: where shall the page go? Give --out")
    path = out or (Path(data) if os.path.isdir(data) else Path(data).parent) / NAME
    splits = _without_wholes(choose_splits(data, gt_folder, images))
    check_target(path)
    check_names([PanopticJson(split, Tally().note).categories for split in splits] if category else [], category or ())
    checkups = [check_split(split, workers or usable_cores()) for split in splits]
    compare_categories(checkups)
    print(write_page(path, checkups, Selection(limit, seed, only_findings, category or ()), workers))
    errors, warnings = (sum(getattr(each.tally, key) for each in checkups) for key in ("errors", "warnings"))
    print(
        f"{errors:,} errors, {warnings:,} warnings"
        + (f"; `upsnet data check {data}` lists them" if errors + warnings else "")
    )


def _without_wholes(splits: list[Split | ShardSplit]) -> list[Split | ShardSplit]:
    """Without those that others beside them were split from, which is said."""
    parts: dict[Path, list[Path]] = {}
    for json_file in (split.json_file for split in splits if len(splits) > 1 and isinstance(split, Split)):
        if name := origin(json_file):
            parts.setdefault(json_file.parent / name, []).append(json_file)
    for whole in (Path(split.json_file) for split in splits if split.json_file in parts):
        names = ", ".join(part.name for part in parts[whole])
        print(f"{whole}: left out, as {names} were split from it; `upsnet data show {whole}` shows it")
    return [split for split in splits if split.json_file not in parts]
