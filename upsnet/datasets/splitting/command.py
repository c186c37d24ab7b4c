"""upsnet data split FOLDER_OR_JSON --val 0.2 [--keep-together PATTERN]"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from upsnet.datasets.advice import how_to_train
from upsnet.datasets.doctor.check import choose_splits
from upsnet.datasets.doctor.json_file import in_folders
from upsnet.datasets.splitting.split import Made, SplitRules, kind, split_dataset
from upsnet.datasets.splitting.together import Duplicates
from upsnet.tables import make_table, print_tables

SHOWN = 5  # of one kind


def main(
    data: Annotated[
        Path, typer.Argument(help="The JSON of a data set, or a folder that holds one.", show_default=False)
    ],
    val: Annotated[float, typer.Option(help="Share of the images to validate on.")] = 0.2,
    test: Annotated[float, typer.Option(help="Share of the images for a test set.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Another seed deals out otherwise.")] = 0,
    keep_together: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="Photos with this in common go to one side: 'folder', or a regular expression on their names, of "
            "which the groups count, as '(patient\\d+)_'.",
        ),
    ] = None,
    duplicates: Annotated[
        Duplicates, typer.Option(help="Go to one side: photos that look alike, the same files, or none.")
    ] = "near",
    out: Annotated[
        Path | None,
        typer.Option(help="Where train.json, val.json and their folders go; default: where the data set lies."),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="An earlier split of this data set.")] = False,
    copy: Annotated[bool, typer.Option("--copy", help="Copy the files (default: hard links, where possible).")] = False,
    gt_folder: Annotated[Path | None, typer.Option(help="The PNGs; default: beside the JSON.")] = None,
    images: Annotated[Path | None, typer.Option(help="The photos; default: where COCO has them.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one for each core.")] = None,
) -> None:
    """Deal out the images of a data set in COCO panoptic format, every class in its share, to train and val.

    Photos are read to be compared, and of the PNGs their headers: `upsnet data check` looks for every fault.
    """
    rules = SplitRules(val, test, seed, keep_together, duplicates, replace, copy, workers)
    source = in_folders(choose_splits(data, gt_folder, images)[0]) if gt_folder or images else data
    print_summary(split_dataset(source, out, rules), rules)


def print_summary(made: Made, rules: SplitRules) -> None:
    """A table of the classes, what was kept together, what is on one side only, and what to do next."""
    for line in made.warnings:
        print(f"warning: {line}")
    names, total = list(made.splits), sum(made.images.values())
    headings = [f"{name} {what}" for name in names for what in ("images", "segments")]
    table = make_table(str(made.source.json_file), "class", "kind", *headings, "% of images in val", left=2)
    for each in sorted(made.classes, key=lambda share: (share.category.isthing, share.category.id)):
        if not each.groups:
            continue
        figures = [f"{count[name]:,}" for name in names for count in (each.images, each.segments)]
        in_val = 100 * each.images["val"] / sum(each.images.values())
        table.add_row(each.category.name, kind(each.category), *figures, f"{in_val:.1f}")
    print_tables(table)
    _print_one_sided(made)
    _print_groups(made, rules)
    for what, photos in (
        ("photos have no contrast: only equal files of them were kept together", made.flat),
        ("photos have names that --keep-together does not match: each is for itself", made.unmatched),
    ):
        if photos:
            print(f"{len(photos):,} {what}; the first is {photos[0]}")
    for name, split in made.splits.items():
        share = 100 * made.images[name] / total
        print(f"{split.json_file}: {made.images[name]:,} of {total:,} images ({share:.1f} %)")
    folder = made.splits["train"].json_file.parent
    print("\n" + how_to_train(folder, made.images["train"], made.pixels["train"]))


def _print_one_sided(made: Made) -> None:
    """Classes that a side lacks, and why."""
    for name in made.splits:
        lacking = [each for each in made.classes if each.groups and not each.images[name]]
        few = [each for each in lacking if each.groups < len(made.splits)]
        rest = [each for each in lacking if each not in few]
        for classes, why in (
            (few, "in too few images, or groups of images, for all sides"),
            (rest, "no way was found to have it on all sides"),
        ):
            if classes:
                names = ", ".join(each.category.name for each in classes[:SHOWN])
                more = f" and {len(classes) - SHOWN:,} more" if len(classes) > SHOWN else ""
                print(f"{name} lacks {names}{more}: {why}")
    absent = sum(not each.groups for each in made.classes)
    if absent:
        print(f"{absent:,} of {len(made.classes):,} classes are in no image (crowds do not count)")


def _print_groups(made: Made, rules: SplitRules) -> None:
    groups = sorted((each for side in made.groups.values() for each in side), key=len, reverse=True)
    if not groups:
        print("no images belong together" if rules.duplicates != "off" else "photos were not compared")
        return
    images = sum(map(len, groups))
    print(f"{images:,} images in {len(groups):,} groups that belong together (listed in *_split.json); the largest:")
    for photos in groups[:SHOWN]:
        more = ", ..." if len(photos) > 2 else ""
        print(f"  {len(photos):,} images: {', '.join(photos[:2])}{more}")
