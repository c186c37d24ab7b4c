"""upsnet data shards --gt-json data/train.json --out PLACE"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from upsnet.buckets import check_output
from upsnet.datasets.doctor.json_file import open_split
from upsnet.datasets.shards.write import MIB, Check, write_shards


def main(
    gt_json: Annotated[str, typer.Option(help="COCO panoptic JSON of the data set, or an index of shards.")],
    out: Annotated[str, typer.Option(metavar="PLACE", help="A folder, or a URL as s3://bucket/data.")],
    gt_folder: Annotated[Path | None, typer.Option(help="The PNGs; default: beside the JSON.")] = None,
    images: Annotated[Path | None, typer.Option(help="The photos; default: where COCO has them.")] = None,
    shard_mib: Annotated[int, typer.Option(min=1, max=1 << 20, help="MiB that a shard does not exceed.")] = 256,
    check: Annotated[
        Check,
        typer.Option(help="full: every photo and PNG is looked at first; json: whether they are there, and the JSON."),
    ] = "full",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that check; default: one for each core.")
    ] = None,
) -> None:
    """Write a data set in COCO panoptic format as shards: a few tars (WebDataset's) in place of many files.

    Into PLACE come NAME-000000.tar, ..., NAME.json, and NAME.shards.json, which is given where a JSON is: --gt-json,
    `upsnet data check`, data.train: {shards: ...} in a configuration. `upsnet train --data PLACE` takes train and val.
    """
    check_output(out)
    split = open_split(gt_json, gt_folder, images)
    written = write_shards(split, out, shard_mib * MIB, check, workers)
    for line in written.warnings:
        print(f"warning: {line}")
    count, shards = len(written.index.images.image_id), len(written.index.shards)
    named = f"{count:,} images in {shards:,} shard{'s' * (shards > 1)}"
    print(f"{written.split.shards}: {named}, {written.size / 1e6:,.1f} MB")
