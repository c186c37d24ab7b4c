"""show.html: one page, with all that it needs inside, about one or several splits."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from upsnet import DISTRIBUTION, __version__
from upsnet.categories import Categories, Category
from upsnet.datasets.doctor.check import Checkup
from upsnet.datasets.findings import KINDS, LISTED, CategoryCount
from upsnet.datasets.maker import REPORT
from upsnet.datasets.page.histogram import coco_shares, common_sizes, ratio_bins, side_bins
from upsnet.datasets.page.picture import Picture, drawer
from upsnet.datasets.page.survey import Survey
from upsnet.datasets.parallel import map_parallel, usable_cores
from upsnet.datasets.split import ShardSplit, Split
from upsnet.errors import InputError
from upsnet.files import check_target, read_json, write_text
from upsnet.pages import open_template

FEW = 16  # pictures for which another process is not worth its start
SHOWN = 3  # findings of a kind in the table
BESIDE = 12  # findings beside a picture
MANY = 20  # names in a message


class Selection(NamedTuple):
    """Which images a page shows."""

    limit: int = 60  # of each split
    seed: int = 0
    only_findings: bool = False  # of the doctor
    categories: Sequence[str] = ()  # names: images that hold one of them


class Page(NamedTuple):
    """What was written."""

    path: Path
    shown: int
    images: int
    size: int  # bytes

    def __str__(self) -> str:
        return f"{self.path}: {self.shown:,} of {self.images:,} images, {self.size / 1e6:.1f} MB; open it in a browser"


ALL = Selection()


def write_page(
    path: Path,
    checkups: Sequence[Checkup],
    selection: Selection = ALL,
    workers: int | None = None,
    progress: bool = True,
) -> Page:
    """A page about splits that the doctor looked at (`check_split`). Nothing in it comes from elsewhere.

    Raises InputError for a category that no split has, a limit below 1, and a path where no file can be written.
    """
    if selection.limit < 1:
        raise InputError(f"--limit {selection.limit}: give at least 1")
    check_target(path)
    surveys = [Survey(each) for each in checkups]
    check_names([each.categories for each in surveys], selection.categories)
    splits = [_split(each, selection, workers, progress) for each in surveys]
    names = sorted({row["name"] for each in splits for picture in each["pictures"] for row in picture["classes"]})
    places = {name: place for place, name in enumerate(names)}
    template = open_template(Path(__file__).parent / "templates/show.html", number=number, share=share)
    write_text(path, template.render(splits=splits, names=names, places=places, maker=f"{DISTRIBUTION} {__version__}"))
    shown, images = (sum(len(each[key]) for each in splits) for key in ("pictures", "images"))
    return Page(path, shown, images, path.stat().st_size)


def check_names(tables: Sequence[Mapping[int, Category]], names: Sequence[str]) -> None:
    """InputError for a name that is in no table."""
    known = {category.name for table in tables for category in table.values()}
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1) or sorted(known)[:MANY]
            raise InputError(f"--category {name}: no such category; there is {', '.join(close) or 'none'}")


def _split(survey: Survey, selection: Selection, workers: int | None, progress: bool) -> dict[str, Any]:
    """What the template asks for of one split."""
    checkup, tally = survey.checkup, survey.checkup.tally
    named = {id for id, each in survey.categories.items() if each.name in selection.categories}
    categories = named if selection.categories else None
    chosen = survey.choose(selection.limit, selection.seed, selection.only_findings, categories)
    table = Categories(survey.categories.values()) if survey.categories else None
    processes = workers or min(usable_cores(), 1 + len(chosen) // FEW)
    pictures = []
    with tqdm(total=len(chosen), desc=f"{checkup.split.name} pictures", disable=not progress) as bar:
        for picture in map_parallel(drawer(table), survey.records(chosen), processes):
            pictures.append(_picture(survey, picture))
            bar.update()
    rows = _classes(survey)
    things = np.concatenate([np.zeros(0), *(survey.areas[row["id"]] for row in rows if row["isthing"])])
    stuff = np.concatenate([np.zeros(0), *(survey.areas[row["id"]] for row in rows if not row["isthing"])])
    sizes = [each.size for each in survey.images.values() if each.size]
    heights, widths = np.array(sizes, float).reshape(-1, 2).T
    pixels = sum(row["pixels"] for row in rows) + tally.void_pixels
    return {
        "name": checkup.split.name,
        "json_file": str(checkup.split.json_file),
        "images": survey.images,
        "things": checkup.segments(True),
        "stuff": checkup.segments(False),
        "errors": tally.errors,
        "warnings": tally.warnings,
        "void": tally.void_pixels / pixels if pixels else 0.0,
        "findings": [
            finding | {"kind": kind, "texts": finding["texts"][:SHOWN]} for kind, finding in tally.findings().items()
        ],
        "findings_shown": SHOWN,
        "left_out": _left_out(checkup.split),
        "pictures": pictures,
        "omitted": _omitted(survey, selection, chosen),
        "used": [row | {"share": row["pixels"] / pixels if pixels else 0.0} for row in rows if row["segments"]],
        "unused": [row["name"] for row in rows if not row["segments"]],
        "most_segments": max((row["segments"] for row in rows), default=0),
        "thing_bins": side_bins(np.sqrt(np.maximum(things, 0)), sized=True),
        "stuff_bins": side_bins(np.sqrt(np.maximum(stuff, 0))),
        "shares": coco_shares(things),
        "photo_bins": side_bins(np.maximum(heights, widths)),
        "ratio_bins": ratio_bins(widths / heights) if len(sizes) else [],
        "common_sizes": common_sizes(sizes),
        "unsized": sum(each.is_annotated and not each.size for each in survey.images.values()),
    }


def _classes(survey: Survey) -> list[dict[str, Any]]:
    """Things first, those with most segments first."""
    counts = survey.checkup.tally.categories
    rows = [
        vars(category) | vars(counts.get(id, CategoryCount())) | {"side": _middle_side(survey, id)}
        for id, category in survey.categories.items()
    ]
    return sorted(rows, key=lambda row: (not row["isthing"], -row["segments"], row["name"]))


def _middle_side(survey: Survey, id: int) -> float | None:
    """The median of the segments' sides: the root of their area."""
    areas = survey.areas[id]
    return float(np.sqrt(max(np.median(areas), 0.0))) if areas else None


def _picture(survey: Survey, picture: Picture) -> dict[str, Any]:
    record = picture.record
    findings = survey.findings.get(record.image_id, [])
    held: Counter[int] = Counter(segment.category_id for segment in record.segments)
    crowds = Counter(segment.category_id for segment in record.segments if segment.iscrowd)
    return picture._asdict() | {
        "id": record.image_id,
        "name": record.file_name,
        "size": record.size,
        "segments": len(record.segments),
        "classes": [
            {"name": survey.categories[id].name, "color": survey.categories[id].color, "count": count}
            | {"crowds": crowds[id]}
            for id, count in held.most_common()
        ],
        "findings": [
            {"text": each.text, "kind": each.kind, "level": "error" if KINDS[each.kind].error else "warning"}
            for each in findings[:BESIDE]
        ],
        "more": max(0, len(findings) - BESIDE),
    }


def _omitted(survey: Survey, selection: Selection, chosen: list[int]) -> list[str]:
    """Sentences about what is not among the pictures, and why."""
    shown, total, tally = len(chosen), len(survey.images), survey.checkup.tally
    if not total:
        return ["The JSON lists no image that can be shown."]
    if shown == total:
        return ["Every image is shown."]
    said = [f"{number(shown)} of {number(total)} images are shown."]
    if selection.categories:
        said.append(f"Only images with {' or '.join(selection.categories)} (--category).")
    if selection.only_findings:
        said.append("Only images with findings, the worst on top (--only-findings).")
    else:
        said.append(f"Findings come first, the worst on top; the others are drawn by lot (--seed {selection.seed}).")
    left = len(survey.findings.keys() & survey.images.keys() - set(chosen))
    if left:
        said.append(f"Images with findings that are not shown: {number(left)}.")
    if any(tally.counts[kind] > len(texts) for kind, texts in tally.texts.items()):
        said.append(f"Of a kind of findings only the first {number(LISTED)} are known image by image.")
    if shown == selection.limit:
        said.append(f"--limit {total} shows more.")
    met = {id for image in chosen for id in survey.images[image].categories}
    lacking = [row["name"] for row in _classes(survey) if row["images"] and row["id"] not in met]
    if lacking and not selection.categories and not selection.only_findings:
        more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
        said.append(f"No picture of {', '.join(lacking[:5])}{more}; --category shows one.")
    return said


def _left_out(split: Split | ShardSplit) -> str:
    """What the converter that made the split says of images that it left out (NAME_conversion.json)."""
    if isinstance(split, ShardSplit):
        return ""
    path = split.json_file.with_name(f"{split.json_file.stem}{REPORT}")
    report = read_json(path) if path.is_file() else None
    left = report.get("images_left_out") if isinstance(report, dict) else None
    if not isinstance(left, list) or not left:
        return ""
    return f"Images that the conversion left out: {number(len(left))}, as {left[0]!s:.300}; {path} lists them."


def number(value: float) -> str:
    """1234567 -> "1,234,567"."""
    return f"{value:,.0f}"


def share(value: float) -> str:
    """0.1234 -> "12.3 %"; what is there is not called nothing."""
    return "under 0.1 %" if 0 < value < 0.001 else f"{100 * value:.1f} %"
