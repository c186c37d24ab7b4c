"""`upsnet import`: a checkpoint of the original UPSNet, or of its hybrid fork, as one of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from training.checkpoint import Checkpoint, save, versions
from training.config import Config, load_config
from training.importers.upsnet.dump import write_dump
from training.importers.upsnet.inputs import read_inputs
from training.importers.upsnet.losses import loss_arrays
from training.importers.upsnet.truth import read_truth
from training.importers.upsnet.weights import (
    COCO_COUNTS,
    Moved,
    class_counts,
    read_original,
    to_cityscapes,
    to_ours,
)
from training.init import read_categories
from training.model.upsnet import UPSNet
from upsnet.categories import Categories
from upsnet.errors import InputError


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
    dump: Annotated[Path | None, typer.Option(help="Write every intermediate array of one image to this .npz.")] = None,
    net_input: Annotated[
        Path | None,
        typer.Option(
            help="The image of --dump as the original's network reads it: float32 3 x H x W, BGR minus the means, "
            "zero-padded to multiples of 32. A .npy, or an .npz with net_input and im_info."
        ),
    ] = None,
    im_info: Annotated[
        str, typer.Option(metavar="H,W,SCALE", help="Size inside the padding, network pixels an original pixel.")
    ] = "",
    inputs: Annotated[
        Path | None,
        typer.Option(
            help="An .npz of such arrays. roi_boxes, mask_roi_index and mask_roi_class are read from it; and stages "
            "start from its arrays, not from the dumped network's own: proposals from rpn_*, detections from "
            "proposal_boxes and cand_*, masks from det_* and pan_det_*, the panoptic map from fcn_score (where whole), "
            "pan_det_* and pan_keep. Without it everything is end to end."
        ),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(
            help="An .npz with the ground truth of the image of --dump: adds the training losses, the gradients' norms "
            "and the samples behind them. In network pixels, H x W with the padding: gt_boxes float [n,4] (inclusive "
            "corners), gt_classes int [n] (from 1), semantic uint8 [H,W] (255 ignored), and gt_masks uint8 [n,H,W] or "
            "instances int16 [H,W] (0 or 1 + row). Samples to use instead of drawn ones, all optional: rpn_labels "
            "[anchors] (1, 0, or -1 unused; P2..P6, then y, x, anchor), rois [R,4] with roi_labels [R] (0 background) "
            "and roi_owners [R] (row; else by IoU), mask_targets [F,28,28] of the foreground rois, crop_labels "
            "[n,28,28], kept [K] (rows), panoptic_target [H/4,W/4] (stuff; S + k for row kept[k]; S + K unknown; 255)."
        ),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="--dump: fcn_score whole, not [::4, ::2, ::2]; and all_cls_*, all_bbox_pred.")
    ] = False,
) -> None:
    """A checkpoint of the original UPSNet or its hybrid fork -> one of ours that computes the same."""
    settings = load_config(config, tuple(set_ or []))
    if settings.model.conventions != "upsnet":
        raise InputError(f"{config}: the original's weights need its conventions: set model.conventions: upsnet")
    if not out and not dump:
        raise InputError("nothing to do: give --out to write a checkpoint, --dump to write its arrays, or both")
    if dump and not net_input:
        raise InputError("--dump needs an image: give --net-input")
    if truth and not dump:
        raise InputError("--truth is for the image of --dump: give --dump and --net-input")
    if not categories and (out or cityscapes):
        raise InputError("give --categories, the COCO panoptic JSON that the network is for")
    table = read_categories(categories) if categories else None
    weights = read_original(checkpoint)
    model, lines = build(settings, weights, table, checkpoint, partial, cityscapes)
    for line in lines:
        print(line)
    if dump and net_input:
        image = read_inputs(net_input, im_info, inputs)
        more = loss_arrays(model, image, read_truth(truth, model, image), settings) if truth else {}
        write_dump(dump, model, image, full, more)
        print(f"{dump}: intermediate arrays{' and losses' if truth else ''} of {net_input}")
    if out and table:
        save(out, Checkpoint(settings, table, 0, None, model.state_dict(), {}, versions()))
        print(f"{out}: {len(weights)} tensors of {checkpoint}, {len(table)} classes")


def build(
    settings: Config,
    weights: dict[str, torch.Tensor],
    table: Categories | None,
    source: Path,
    partial: bool = False,
    cityscapes: bool = False,
) -> tuple[UPSNet, list[str]]:
    """The network with the original's weights, in eval mode, and lines for the user.

    InputError names every missing, unexpected and mis-shaped key, unless `partial`.
    """
    found = class_counts(weights, source)
    expected = (table.num_stuff, table.num_things) if table else found
    if cityscapes:
        expected = COCO_COUNTS
    if found != expected:
        raise InputError(
            f"{source}: has {found[0]} stuff and {found[1]} thing classes, expected {expected[0]} and {expected[1]}; "
            "give the categories that it was trained with"
        )
    torch.manual_seed(settings.seed)
    model = UPSNet(settings.model, *found)
    moved = to_ours(model, weights)
    if moved.problems and not partial:
        raise InputError(
            f"{source}: {len(moved.problems)} keys do not fit the configured network: {'; '.join(moved.problems)}; "
            "change the configuration, or go on with --partial"
        )
    lines = list(moved.problems)
    if cityscapes and table:
        model, more = _cityscapes(settings, moved, table)
        return model.eval(), lines + more
    model.load_state_dict(moved.state)
    return model.eval(), lines


def _cityscapes(settings: Config, coco: Moved, table: Categories) -> tuple[UPSNet, list[str]]:
    """The Cityscapes network made of a COCO network's state_dict; classes that COCO lacks have the seed's weights."""
    torch.manual_seed(settings.seed)
    model = UPSNet(settings.model, table.num_stuff, table.num_things)
    state, lines = to_cityscapes(model.state_dict(), coco.state, table)
    model.load_state_dict(state)
    return model, lines
