"""`upsnet import`: other people's networks, the original UPSNet or detectron2's Panoptic FPN, as one of ours."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from training.checkpoint import Checkpoint, save, versions
from training.config import load_config
from training.importers.building import build, family_of, table_of
from training.importers.golden import Options, write_golden
from training.importers.reading import read_weights
from upsnet.datasets.panoptic_json import listed_categories, read_categories
from upsnet.errors import InputError
from upsnet.files import check_target

OLD = typer.Option(hidden=True)  # options that `upsnet golden` has now, --dump as --out


def main(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="The original UPSNet's weights, or detectron2's Panoptic FPN: a file of torch.save, or a .pkl of its "
            "model zoo. The names of the tensors say which."
        ),
    ],
    config: Annotated[
        Path, typer.Option(help="YAML configuration with the same layers, and model.conventions: upsnet or detectron2.")
    ],
    categories: Annotated[
        Path | None,
        typer.Option(help="A COCO panoptic JSON, or the list of its categories; COCO's own if there are as many."),
    ] = None,
    listed_order: Annotated[
        bool,
        typer.Option(
            "--listed-order", help="The weights have their classes in the order of the list in --categories, not by id."
        ),
    ] = False,
    out: Annotated[Path | None, typer.Option(help="The checkpoint to write, as runs/NAME/last.safetensors.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override, as model.conventions=upsnet; repeatable."),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Go on where keys do not fit: list them, and keep random weights there.")
    ] = False,
    cityscapes: Annotated[
        bool,
        typer.Option("--to-cityscapes", help="UPSNet's COCO weights; --config and --categories are Cityscapes'."),
    ] = False,
    dump: Annotated[Path | None, OLD] = None,
    photo: Annotated[Path | None, OLD] = None,
    short_side: Annotated[int | None, OLD] = None,
    max_side: Annotated[int | None, OLD] = None,
    net_input: Annotated[Path | None, OLD] = None,
    im_info: Annotated[str, OLD] = "",
    inputs: Annotated[Path | None, OLD] = None,
    truth: Annotated[Path | None, OLD] = None,
    full: Annotated[bool, typer.Option("--full", hidden=True)] = False,
) -> None:
    """A checkpoint of the original UPSNet, its hybrid fork or detectron2's Panoptic FPN -> one of ours that computes
    the same."""
    settings = load_config(config, tuple(set_ or []))
    image = net_input or photo
    if bool(dump) != bool(image) or (truth and not net_input):
        raise InputError(
            "--truth is for the image of --dump, which needs --net-input, or --photo for a Panoptic FPN; see upsnet "
            "golden --help"
        )
    if not out and not dump:
        raise InputError("nothing to do: give --out, the checkpoint to write")
    if cityscapes and not categories:
        raise InputError("--to-cityscapes: give --categories, those of Cityscapes")
    if listed_order and (cityscapes or not categories):
        raise InputError("--listed-order: give --categories, those that the weights are for, in their order")
    for target in filter(None, (out, dump)):
        check_target(target)
    weights = read_weights(checkpoint)
    family = family_of(weights, checkpoint)
    family.check(settings, config, checkpoint)
    table = read_categories(categories) if categories else table_of(family, weights, checkpoint) if out else None
    listed = listed_categories(categories) if categories and listed_order else ()
    model, lines = build(settings, family, weights, table, checkpoint, partial, cityscapes, listed)
    for line in lines:
        print(line)
    if dump:
        print(
            f"now: upsnet golden CHECKPOINT {'--photo' if photo else '--net-input'} {image} --out {dump}",
            file=sys.stderr,
        )
        options = Options(photo, short_side, max_side, net_input, im_info, inputs, truth, full)
        write_golden(dump, model, settings, options, checkpoint)
    if out and table:
        save(out, Checkpoint(settings, table, 0, None, model.state_dict(), {}, versions()))
        print(f"{out}: {len(weights)} tensors of {checkpoint} ({family.name}), {len(table)} classes")
