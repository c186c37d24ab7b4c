"""Reading what `upsnet predict --photos-from` wrote."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from upsnet import storage
from upsnet.bulk import parquet, tar
from upsnet.bulk.photo_list import base_of, place_of
from upsnet.bulk.plan import PLAN, Plan, pending, read_plan
from upsnet.bulk.report import summary_of
from upsnet.bulk.row import Row
from upsnet.categories import Categories
from upsnet.datasets.coco_format import JSON_NAME, rgb2id
from upsnet.errors import InputError
from upsnet.files import PathLike, staged_folder
from upsnet.photos import read_photo, reading_photo
from upsnet.prediction import PanopticPrediction
from upsnet.result import PanopticResult, Segment

ROWS = {"tar": tar.read_rows, "parquet": parquet.read_rows}


@dataclass(frozen=True, eq=False, repr=False)
class ListedPrediction(PanopticPrediction):
    """The prediction of a photo of a list; `source` is the photo as the list has it."""

    image_id: int = 0


def read_predictions(place: PathLike, incomplete: bool = False) -> Iterator[ListedPrediction]:
    """What `upsnet predict --photos-from LIST --out PLACE` wrote, one photo after the other, in the list's order.

    place: a folder, or a URL. Photos that were left out are not among them: PLACE/failed.jsonl has those. incomplete:
    also where blocks are missing, which are passed over. Raises InputError where blocks are missing, or damaged.

    >>> for prediction in upsnet.read_predictions("out"):  # doctest: +SKIP
    ...     print(prediction.image_id, prediction.source, prediction.describe())
    """
    plan = existing_plan(str(place))
    categories, base = plan.categories_table, base_of(plan.photo_list)
    return (_prediction(row, categories, base) for row in read_rows(plan, str(place), incomplete))


def existing_plan(out: str) -> Plan:
    """InputError where it is no output of a list."""
    plan = read_plan(out)
    if plan is None:
        raise InputError(f"{out}: no {PLAN}: it is no output of `upsnet predict --photos-from`")
    return plan


def read_rows(plan: Plan, out: str, incomplete: bool = False) -> Iterator[Row]:
    """Those that were predicted, block by block."""
    missing = set(pending(plan, out))
    if missing and not incomplete:
        raise InputError(
            f"{out}: {len(missing)} of {plan.blocks} blocks are not there yet; start the command that made it again"
        )
    numbers = (number for number in range(plan.blocks) if number not in missing)
    return (row for number in numbers for row in _rows_of(plan, out, number))


def _rows_of(plan: Plan, out: str, number: int) -> Iterator[Row]:
    summary, found = summary_of(plan, out, number), 0
    place = storage.join(out, plan.file_name(number))
    for row in ROWS[plan.format](place):
        found += 1
        yield row
    if found != summary.photos - len(summary.left_out):
        raise InputError(f"{place}: not whole; delete it and start the command that made it again")


def unpack(place: PathLike, folder: Path) -> Path:
    """Writes folder/predictions/NAME.png and folder/predictions.json, the official COCO panoptic format; its path.

    All or nothing. Raises InputError as `read_predictions`.
    """
    plan = existing_plan(str(place))
    rows = read_rows(plan, str(place))
    with staged_folder(folder) as stage, open(stage / JSON_NAME, "w", encoding="utf-8") as stream:
        stream.write('{"annotations": [')
        separator = "\n"
        for row in rows:
            png = stage / "predictions" / f"{row.name}.png"
            png.parent.mkdir(parents=True, exist_ok=True)
            png.write_bytes(row.png)
            stream.write(separator + json.dumps(row.annotation, allow_nan=False))
            separator = ",\n"
        stream.write(f'\n], "categories": {json.dumps(plan.categories)}}}\n')
    return folder / JSON_NAME


def _prediction(row: Row, categories: Categories, base: str) -> ListedPrediction:
    with reading_photo(f"{row.name}.png"), Image.open(io.BytesIO(row.png)) as image:
        ids = rgb2id(np.asarray(image))
    segments = [
        Segment(
            each["id"], categories.index_of_id(each["category_id"]), each["score"], each["area"], tuple(each["bbox"])
        )
        for each in row.segments
    ]
    read = partial(read_photo, place_of(row.photo, base), row.photo)
    return ListedPrediction(PanopticResult(ids, segments), categories, read, row.photo, row.name, image_id=row.image_id)
