"""`upsnet golden`: every intermediate array of one image, to compare an imported network with its original."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from training.checkpoint import load_model
from training.config import Config
from training.importers.upsnet.golden.dump import dump
from training.importers.upsnet.golden.inputs import Inputs, read_inputs
from training.importers.upsnet.golden.losses import loss_arrays
from training.importers.upsnet.golden.truth import read_truth
from training.model.upsnet import UPSNet
from upsnet.errors import InputError
from upsnet.files import atomic_path


def main(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint that upsnet import wrote.")],
    net_input: Annotated[
        Path,
        typer.Option(
            help="The image as the original's network reads it: float32 3 x H x W, BGR minus the means, zero-padded to "
            "multiples of 32. A .npy, or an .npz with net_input and im_info."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The .npz to write.")],
    im_info: Annotated[
        str, typer.Option(metavar="H,W,SCALE", help="Size inside the padding, network pixels for one original pixel.")
    ] = "",
    inputs: Annotated[
        Path | None,
        typer.Option(
            help="An .npz of arrays of the original: each stage starts from them, not from the network's own."
        ),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(
            help="An .npz with the ground truth (docs/golden.md): adds the training losses and what led to them."
        ),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="All of fcn_score instead of [::4, ::2, ::2]; also all_cls_*, all_bbox_pred.")
    ] = False,
) -> None:
    """Write every intermediate array of one image, to compare an imported network with its original."""
    model, settings, *_ = load_model(checkpoint)
    if settings.model.conventions != "upsnet":
        raise InputError(
            f"{checkpoint}: not a network of the original UPSNet: give a checkpoint that upsnet import wrote"
        )
    write_golden(out, model, settings, read_inputs(net_input, im_info, inputs), truth, full)


def write_golden(out: Path, model: UPSNet, settings: Config, image: Inputs, truth: Path | None, full: bool) -> None:
    """`settings`: the seed of the samples that are drawn, and the weights of the losses in their total."""
    losses = loss_arrays(model, image, read_truth(truth, model, image), settings) if truth else {}
    arrays = dump(model, image, full) | losses
    with atomic_path(out.with_suffix(".npz")) as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **arrays)
    print(f"{out}: {len(arrays)} intermediate arrays{' and losses' if truth else ''}")
