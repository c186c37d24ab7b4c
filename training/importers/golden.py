"""`upsnet golden`: every intermediate array of one image, to compare an imported network with its original."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from pydantic import ValidationError

from training.checkpoint import load_model
from training.config import Config
from training.importers.arrays import write_arrays
from training.importers.panoptic_fpn.golden.dump import dump as dump_panoptic_fpn
from training.importers.panoptic_fpn.golden.inputs import read_inputs as read_photo_inputs
from training.importers.panoptic_fpn.weights import PANOPTIC_FPN
from training.importers.upsnet.golden.dump import dump as dump_upsnet
from training.importers.upsnet.golden.inputs import read_inputs
from training.importers.upsnet.golden.losses import loss_arrays
from training.importers.upsnet.golden.truth import read_truth
from training.importers.upsnet.weights import UPSNET
from training.model.upsnet import UPSNet
from upsnet.errors import InputError, one_line
from upsnet.files import check_target, write_json
from upsnet.geometry import ResizeRule


def main(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint that upsnet import wrote.")],
    out: Annotated[Path, typer.Option(help="The .npz to write; of a Panoptic FPN also the .json beside it.")],
    photo: Annotated[
        Path | None, typer.Option(help="The image of a Panoptic FPN, resized as --short-side and --max-side say.")
    ] = None,
    short_side: Annotated[
        int | None, typer.Option(min=1, help="Of the photo, network pixels; the run's own if not given.")
    ] = None,
    max_side: Annotated[
        int | None, typer.Option(min=1, help="The longest that its other side may be; the run's own if not given.")
    ] = None,
    net_input: Annotated[
        Path | None,
        typer.Option(
            help="The image of a UPSNet, as the original's network reads it: float32 3 x H x W, BGR minus the means, "
            "zero-padded to multiples of 32. A .npy, or an .npz with net_input and im_info."
        ),
    ] = None,
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
            help="An .npz with the ground truth of a UPSNet's image (docs/golden.md): adds the training losses and "
            "what led to them."
        ),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Whole arrays instead of samples: docs/golden.md.")] = False,
) -> None:
    """Write every intermediate array of one image, to compare an imported network with its original."""
    check_target(out.with_suffix(".npz"))
    model, settings, *_ = load_model(checkpoint)
    options = Options(photo, short_side, max_side, net_input, im_info, inputs, truth, full)
    write_golden(out, model, settings, options, checkpoint)


class Options(NamedTuple):
    """Which image, what its stages start from, and how much is written: see `upsnet golden --help`."""

    photo: Path | None = None
    short_side: int | None = None
    max_side: int | None = None
    net_input: Path | None = None
    im_info: str = ""
    inputs: Path | None = None
    truth: Path | None = None
    full: bool = False


def write_golden(out: Path, model: UPSNet, settings: Config, options: Options, source: Path) -> None:
    """The arrays of `model`, which came from the file `source`.

    InputError: it is no imported network, or of another family than the options are for.
    """
    if not UPSNET.differing(settings):
        _check(options, source, "net_input", ("photo", "short_side", "max_side"))
        _write_upsnet(out, model, settings, options)
    elif not PANOPTIC_FPN.differing(settings):
        PANOPTIC_FPN.sources(model)  # refuses other backbones
        _check(options, source, "photo", ("net_input", "im_info", "truth"))
        _write_panoptic_fpn(out, model, settings, options)
    else:
        raise InputError(
            f"{source}: not a network of the original UPSNet, nor of detectron2's Panoptic FPN: give a checkpoint that "
            "upsnet import wrote"
        )


def _check(options: Options, source: Path, needed: str, others: tuple[str, ...]) -> None:
    values = options._asdict()
    wrong = [name for name in others if values[name]]
    if wrong or not values[needed]:
        what = f"{_option(wrong[0])} is of no use for" if wrong else f"{_option(needed)} is missing for"
        raise InputError(f"{what} the network in {source}; give its image with {_option(needed)}, see docs/golden.md")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _write_upsnet(out: Path, model: UPSNet, settings: Config, options: Options) -> None:
    """`settings`: the seed of the samples that are drawn, and the weights of the losses in their total."""
    assert options.net_input
    image, truth = read_inputs(options.net_input, options.im_info, options.inputs), options.truth
    losses = loss_arrays(model, image, read_truth(truth, model, image), settings) if truth else {}
    arrays = dump_upsnet(model, image, options.full) | losses
    write_arrays(out, arrays)
    print(f"{out}: {len(arrays)} intermediate arrays{' and losses' if truth else ''}")


def _write_panoptic_fpn(out: Path, model: UPSNet, settings: Config, options: Options) -> None:
    assert options.photo
    own = settings.data.resize.model_dump()
    given = {"short_side": options.short_side, "max_side": options.max_side}
    try:
        rule = ResizeRule.model_validate(own | {name: side for name, side in given.items() if side})
    except ValidationError as error:
        raise InputError(f"--short-side, --max-side: {one_line(error)}") from None
    image = read_photo_inputs(options.photo, rule, options.inputs)
    result = dump_panoptic_fpn(model, image, options.full)
    height, width = image.image.original
    write_arrays(out, result.arrays)
    write_json(
        out.with_suffix(".json"),
        {
            "photo": options.photo.name,
            "original_size": [height, width],
            "image_size": list(image.image.size),
            "padded_size": list(image.image.image.shape[:2]),
            "segments_info": result.segments,
            "differing_pixels": result.differing,
        },
    )
    print(
        f"{out}: {len(result.arrays)} intermediate arrays; {out.with_suffix('.json')}: {len(result.segments)} segments"
    )
    print(
        f"{result.differing} of {height * width} pixels differ between this map, merged at the photo's size, and the "
        f"one merged at the network's ({result.differing / (height * width):.2%})"
    )
