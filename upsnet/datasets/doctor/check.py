"""The doctor of data sets in the COCO panoptic format: it looks at everything, and lists all that it found.

upsnet data check FOLDER_OR_JSON [--report report.json]
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

from upsnet.categories import Categories, Category, differences
from upsnet.datasets.doctor.image import ImageTask, check_images
from upsnet.datasets.doctor.json_file import find_splits, open_split, unlisted
from upsnet.datasets.findings import CategoryCount, Tally
from upsnet.datasets.panoptic_json import PanopticJson
from upsnet.datasets.parallel import chunked, map_parallel, usable_cores
from upsnet.datasets.places import ShardFiles
from upsnet.datasets.split import ShardSplit, Split
from upsnet.errors import InputError
from upsnet.files import PathLike, write_json
from upsnet.storage import is_url

CHUNK = 32  # images that a process takes at once
SHOWN = 3  # findings of a kind in the table

FOUND_ERRORS = 1  # exit status


class Checkup(NamedTuple):
    """One split's findings and counts."""

    split: Split | ShardSplit
    categories: dict[int, Category]
    tally: Tally
    seconds: float  # for the images, without reading the JSON

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.tally.images / max(self.seconds, 1e-9)

    def to_json(self) -> dict[str, Any]:
        return {
            "json_file": str(self.split.json_file),
            **_places(self.split),
            "errors": self.tally.errors,
            "warnings": self.tally.warnings,
            "images": self.tally.images,
            "segments_of_things": self.segments(True),
            "segments_of_stuff": self.segments(False),
            "void_pixels": self.tally.void_pixels,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.rate, 1),
            "categories": [
                {
                    **{"id": id, "name": category.name, "isthing": int(category.isthing)},
                    **vars(self.tally.categories.get(id, CategoryCount())),
                }
                for id, category in self.categories.items()
            ],
            "findings": self.tally.findings(),
        }

    def segments(self, things: bool) -> int:
        counts = self.tally.categories.items()
        return sum(count.segments for id, count in counts if self.categories[id].isthing == things)


def _places(split: Split | ShardSplit) -> dict[str, str]:
    if isinstance(split, ShardSplit):
        return {"shards": split.shards}
    return {"segments": str(split.segments), "images_folder": str(split.images)}


def check_split(split: Split | ShardSplit, workers: int, progress: bool = True) -> Checkup:
    """Looks at the JSON, then at every image that has an annotation."""
    tally = Tally()
    chart = PanopticJson(split, tally.note)
    files = chart.files
    tasks = [
        ImageTask(
            row.image_id,
            files.photo(row.image_id, row.photo),
            files.png(row.image_id, row.png),
            row.size,
            row.segments,
            row.boxes,
        )
        for row in chart.rows()
    ]
    if isinstance(files, ShardFiles):
        tally.report(files.changes(progress))
    elif chart.is_readable and isinstance(split, Split):
        tally.report(unlisted("photo-unlisted", split.images, chart.images.values()))
        tally.report(unlisted("png-unlisted", split.segments, chart.annotations.values()))
    began = time.perf_counter()
    with tqdm(total=len(tasks), desc=split.name, unit="image", disable=not progress) as bar:
        for part, _ in map_parallel(check_images, chunked(tasks, CHUNK), workers):
            tally.add(part)
            bar.update(part.images)
    return Checkup(split, chart.categories, tally, time.perf_counter() - began)


def compare_categories(checkups: Sequence[Checkup]) -> None:
    """Training and validation need one table: a warning, since a folder may hold data sets that are no pair."""
    readable = [each for each in checkups if each.categories]
    for each in readable[1:]:
        own, other = each.split.json_file, readable[0].split.json_file
        mine, theirs = (Categories(of.categories.values()) for of in (each, readable[0]))
        if found := differences(mine, theirs, str(own), str(other)):
            each.tally.note("other-categories", f"its categories are not those of {other}: {found}")


def show(checkup: Checkup, console: Console) -> None:
    """A table of what was found, worst first, and the counts."""
    tally = checkup.tally
    if tally.counts:
        table = Table(title=escape(str(checkup.split.json_file)), title_justify="left")
        for column in ("", "what", "count", "for example"):
            table.add_column(column, justify="right" if column == "count" else "left", overflow="fold")
        for kind, finding in tally.findings().items():
            level = "[red]error[/]" if finding["level"] == "error" else "[yellow]warning[/]"
            examples = "\n".join(map(escape, finding["texts"][:SHOWN]))
            table.add_row(level, f"{kind}: {finding['meaning']}", f"{finding['count']:,}", examples)
        console.print(table)
    used = sum(count.segments > 0 for count in tally.categories.values())
    console.print(
        f"{checkup.split.json_file}: {tally.images:,} images, {checkup.segments(True):,} segments of things, "
        f"{checkup.segments(False):,} of stuff, {used} of {len(checkup.categories)} categories in use; "
        f"{tally.errors:,} errors, {tally.warnings:,} warnings; {checkup.rate:.1f} images a second",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def choose_splits(data: PathLike, gt_folder: Path | None, images: Path | None) -> list[Split | ShardSplit]:
    """Of a folder, or of a JSON or an index of shards; each may be behind a URL where the photos lie in shards."""
    place = os.fspath(data)
    if os.path.isdir(place) or (is_url(place) and not place.endswith(".json")):
        if gt_folder or images:
            raise InputError("--gt-folder and --images go with a JSON, not with a folder")
        return find_splits(place)
    if not is_url(place) and not os.path.isfile(place):
        raise InputError(f"{place}: no such file or folder")
    return [open_split(place, gt_folder, images)]


def main(
    data: Annotated[
        str,
        typer.Argument(
            help="A folder with data sets, the JSON of one, or the index of one in shards; the latter may be a URL.",
            show_default=False,
        ),
    ],
    gt_folder: Annotated[Path | None, typer.Option(help="The PNGs; default: beside the JSON.")] = None,
    images: Annotated[Path | None, typer.Option(help="The photos; default: where COCO has them.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; default: one for each core.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write everything that was found to this JSON.")] = None,
) -> None:
    """Look for faults in a data set in COCO panoptic format. Exit status: 0 no errors, 1 errors, 2 bad use."""
    processes = usable_cores() if workers is None else workers
    checkups = [check_split(split, processes) for split in choose_splits(data, gt_folder, images)]
    compare_categories(checkups)
    console = Console()
    for checkup in checkups:
        show(checkup, console)
    errors = sum(checkup.tally.errors for checkup in checkups)
    if report is not None:
        splits = [checkup.to_json() for checkup in checkups]
        write_json(report, {"clean": not errors, "workers": processes, "splits": splits})
    if errors:
        raise typer.Exit(FOUND_ERRORS)
