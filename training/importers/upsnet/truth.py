"""Ground truth of one image, and samples of another network's step, from an .npz: see `upsnet import --help`."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from training.data.sample import IGNORE
from training.importers.upsnet.inputs import Arrays, Inputs, read_arrays
from training.losses.semantic import STRIDE
from training.model.heads import MASK_SIZE
from training.model.rpn import STRIDES
from training.model.upsnet import UPSNet
from upsnet.errors import InputError

REQUIRED = ("gt_boxes", "gt_classes", "semantic")
MASKS = ("gt_masks", "instances")
SAMPLES = ("rpn_labels", "rois", "roi_labels", "roi_owners", "mask_targets", "crop_labels", "kept", "panoptic_target")
NEEDS = {
    "rois": "roi_labels",
    "roi_labels": "rois",
    "roi_owners": "rois",
    "mask_targets": "rois",
    "panoptic_target": "kept",
}
INTEGER, REAL, ANY, MASK = "iu", "f", "biuf", "bu"  # numpy's kinds of types
WORDS = {INTEGER: "integers", REAL: "float32", ANY: "numbers", MASK: "uint8"}


class Truth(NamedTuple):
    """An image of H x W network pixels with its padding, and n instances."""

    boxes: Tensor  # float32 n x 4, inclusive corners
    labels: Tensor  # int64 n, thing index
    semantic: Tensor  # uint8 H x W
    masks: Tensor  # bool n x H x W; they may overlap
    given: dict[str, Tensor]  # samples to use instead of drawn ones; int64, but rois and mask_targets float32


def read_truth(path: Path, model: UPSNet, inputs: Inputs) -> Truth:
    """InputError names the array that is missing, unknown, or of a wrong type, shape or value."""
    arrays = _Arrays(path, read_arrays(path))
    height, width = inputs.image.shape[1:]
    classes = model.num_stuff + model.num_things
    labels = arrays.take("gt_classes", INTEGER, (None,), 1, model.num_things) - 1
    count = len(labels)
    boxes = arrays.take("gt_boxes", REAL, (count, 4))
    if (boxes[:, 2:] < boxes[:, :2]).any():
        raise InputError(f"{path}: gt_boxes has a box that ends before it begins; they are x1, y1, x2, y2")
    semantic = arrays.take("semantic", INTEGER, (height, width), 0, classes - 1, void=True)
    if "gt_masks" in arrays.found:
        masks = arrays.take("gt_masks", MASK, (count, height, width)) > 0
    else:
        numbers = arrays.take("instances", INTEGER, (height, width), 0, count)
        masks = numbers == torch.arange(1, count + 1)[:, None, None]
    return Truth(boxes, labels, semantic.byte(), masks, _samples(arrays, model, labels, height, width))


def _samples(arrays: _Arrays, model: UPSNet, labels: Tensor, height: int, width: int) -> dict[str, Tensor]:
    """Those that the file has, for instances of the thing indices `labels`."""
    given, found, count = {}, arrays.found, len(labels)
    classes = model.num_stuff + model.num_things
    if "rpn_labels" in found:
        cells = sum(-(-height // stride) * -(-width // stride) for stride in STRIDES)
        anchors = cells * len(model.config.rpn.anchor_ratios)
        given["rpn_labels"] = arrays.take("rpn_labels", INTEGER, (anchors,), -1, min(1, count))
    if "rois" in found:
        given["rois"] = arrays.take("rois", REAL, (None, 4))
        rows = len(given["rois"])
        given["roi_labels"] = arrays.take("roi_labels", INTEGER, (rows,), 0, model.num_things)
        if "roi_owners" in found:
            given["roi_owners"] = arrays.take("roi_owners", INTEGER, (rows,))
        _check_owners(arrays.path, given, labels)
        if "mask_targets" in found:
            shape = (int((given["roi_labels"] > 0).sum()), MASK_SIZE, MASK_SIZE)
            given["mask_targets"] = arrays.take("mask_targets", ANY, shape, 0, 1)
    if "crop_labels" in found:
        shape = (count, MASK_SIZE, MASK_SIZE)
        given["crop_labels"] = arrays.take("crop_labels", INTEGER, shape, 0, classes - 1, void=True)
    if "kept" in found:
        given["kept"] = kept = arrays.take("kept", INTEGER, (None,), 0, count - 1)
        if "panoptic_target" in found:
            unknown, cut = model.num_stuff + len(kept), (height // STRIDE, width // STRIDE)
            given["panoptic_target"] = arrays.take("panoptic_target", INTEGER, cut, 0, unknown, void=True)
    return given


def _check_owners(path: Path, given: dict[str, Tensor], labels: Tensor) -> None:
    """There are RoIs, and those of the foreground belong to instances of their own class."""
    if len(given["rois"]) == 0:
        raise InputError(f"{path}: rois is empty; leave it out, and they are drawn")
    foreground = given["roi_labels"] > 0
    things = given["roi_labels"][foreground] - 1
    if not torch.isin(things, labels).all():
        raise InputError(f"{path}: roi_labels has a class that no instance has in gt_classes")
    if "roi_owners" in given:
        owners = given["roi_owners"][foreground]
        inside = (owners >= 0) & (owners < len(labels))
        if not inside.all() or (labels[owners] != things).any():
            raise InputError(f"{path}: roi_owners must be the rows of gt_boxes that the foreground of rois belongs to")


class _Arrays:
    """The arrays of the file, once it is clear that they belong together."""

    def __init__(self, path: Path, found: Arrays) -> None:
        self.path, self.found = path, found
        if missing := [name for name in REQUIRED if name not in found]:
            raise InputError(f"{path}: lacks {', '.join(missing)}")
        if unknown := sorted(found.keys() - {*REQUIRED, *MASKS, *SAMPLES}):
            raise InputError(f"{path}: {', '.join(unknown)}: not arrays that are read; see upsnet import --help")
        if sum(name in found for name in MASKS) != 1:
            raise InputError(f"{path}: give the instances' masks as one of {' and '.join(MASKS)}")
        if lonely := [name for name, other in NEEDS.items() if name in found and other not in found]:
            raise InputError(f"{path}: {lonely[0]} means nothing without {NEEDS[lonely[0]]}")

    def take(
        self, name: str, kinds: str, shape: tuple, low: float = -inf, high: float = inf, void: bool = False
    ) -> Tensor:
        """An array, finite and from low to high (or IGNORE where `void`); None in `shape` is any length."""
        array = self.found[name]
        fits = array.ndim == len(shape) and all(b in (None, a) for a, b in zip(array.shape, shape, strict=True))
        if array.dtype.kind not in kinds or not fits:
            wanted = " x ".join("any" if side is None else str(side) for side in shape)
            raise InputError(
                f"{self.path}: {name} is {array.dtype} {list(array.shape)} instead of {WORDS[kinds]} [{wanted}]"
            )
        values = torch.from_numpy(array).to(torch.float32 if REAL in kinds else torch.int64)
        right = (values >= low) & (values <= high) & values.isfinite()
        right = right | (values == IGNORE) if void else right
        if not right.all():
            bounds = f"from {low:g} to {high:g}{f', or {IGNORE}' if void else ''}" if high < inf else "finite"
            raise InputError(f"{self.path}: {name} has the value {values[~right][0].item():g}; they must be {bounds}")
        return values
