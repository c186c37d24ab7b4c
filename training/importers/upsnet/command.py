"""`upsnet import`: a checkpoint of the original UPSNet, or of its hybrid fork, as one of ours."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from training.checkpoint import Checkpoint, save, versions
from training.config import load_config
from training.importers.upsnet.golden.command import write_golden
from training.importers.upsnet.golden.inputs import read_inputs
from training.importers.upsnet.weights import build, read_original
from upsnet.datasets.panoptic_json import read_categories
from upsnet.errors import InputError

OLD = typer.Option(hidden=True)  # options that `upsnet golden` has now, --dump as --out


def main(
    checkpoint: Annotated[Path, typer.Argument(help="The original's weights, a state_dict as torch.save wrote it.")],
    config: Annotated[
        Path, typer.Option(help="YAML configuration with the same layers, and model.conventions: upsnet.")
    ],
    categories: Annotated[
        Path | None, typer.Option(help="A COCO panoptic JSON, or the list of its categories. --out needs it.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The checkpoint to write, as runs/NAME/last.safetensors.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override, as model.conventions=upsnet; repeatable."),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Go on where keys do not fit: list them, and keep random weights there.")
    ] = False,
    cityscapes: Annotated[
        bool, typer.Option("--to-cityscapes", help="COCO weights; --config and --categories are Cityscapes'.")
    ] = False,
    dump: Annotated[Path | None, OLD] = None,
    net_input: Annotated[Path | None, OLD] = None,
    im_info: Annotated[str, OLD] = "",
    inputs: Annotated[Path | None, OLD] = None,
    truth: Annotated[Path | None, OLD] = None,
    full: Annotated[bool, typer.Option("--full", hidden=True)] = False,
) -> None:
    """A checkpoint of the original UPSNet or its hybrid fork -> one of ours that computes the same."""
    settings = load_config(config, tuple(set_ or []))
    if settings.model.conventions != "upsnet":
        raise InputError(f"{config}: the original's weights need its conventions: set model.conventions: upsnet")
    if (dump and not net_input) or (truth and not dump):
        raise InputError("--truth is for the image of --dump, which needs --net-input; see upsnet golden --help")
    if not out and not dump:
        raise InputError("nothing to do: give --out, the checkpoint to write")
    if not categories and (out or cityscapes):
        raise InputError("give --categories, the COCO panoptic JSON that the network is for")
    table = read_categories(categories) if categories else None
    weights = read_original(checkpoint)
    model, lines = build(settings, weights, table, checkpoint, partial, cityscapes)
    for line in lines:
        print(line)
    if dump and net_input:
        print(f"now: upsnet golden CHECKPOINT --net-input {net_input} --out {dump}", file=sys.stderr)
        write_golden(dump, model, settings, read_inputs(net_input, im_info, inputs), truth, full)
    if out and table:
        save(out, Checkpoint(settings, table, 0, None, model.state_dict(), {}, versions()))
        print(f"{out}: {len(weights)} tensors of {checkpoint}, {len(table)} classes")
