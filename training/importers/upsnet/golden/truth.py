"""Ground truth of one image, and samples of another network's step, from an .npz: docs/golden.md has the arrays."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from training.data.sample import IGNORE
from training.importers.arrays import Arrays, read_arrays
from training.importers.upsnet.golden.inputs import Inputs
from training.losses.semantic import STRIDE
from training.model.heads import MASK_SIZE
from training.model.rpn import STRIDES
from training.model.upsnet import UPSNet
from upsnet.errors import InputError

REQUIRED = ("gt_boxes", "gt_classes", "semantic")
MASKS = ("gt_masks", "instances")
NEEDS = {
    "rois": "roi_labels",
    "roi_labels": "rois",
    "roi_owners": "rois",
    "mask_targets": "rois",
    "panoptic_target": "kept",
}
INTEGER, REAL, ANY, MASK = "iu", "f", "biuf", "bu"  # numpy's kinds of types
WORDS = {INTEGER: "integers", REAL: "float32", ANY: "numbers", MASK: "uint8"}


class Form(NamedTuple):
    """What an array must be: finite, and from low to high (or IGNORE where `void`)."""

    kinds: str
    shape: tuple[int | None, ...]  # None: any length
    low: float = -inf
    high: float = inf
    void: bool = False


class Samples(NamedTuple):
    """What a training step drew for an image of n instances. None: draw it. int64, or another type where it says so."""

    rpn_labels: Tensor | None = None  # all anchors: 1 object, 0 background, -1 unused; P2..P6, then y, x, anchor
    rois: Tensor | None = None  # float32 R x 4, inclusive corners
    roi_labels: Tensor | None = None  # R, 0 background
    roi_owners: Tensor | None = None  # R, instance of each foreground RoI
    mask_targets: Tensor | None = None  # float32 F x 28 x 28, of the foreground RoIs
    crop_labels: Tensor | None = None  # n x 28 x 28, classes in the instances' boxes
    kept: Tensor | None = None  # K, instances that are not unknown
    panoptic_target: Tensor | None = None  # H/4 x W/4: stuff, S + k for instance kept[k], S + K unknown, or IGNORE


class Truth(NamedTuple):
    """An image of H x W network pixels with its padding, and n instances."""

    boxes: Tensor  # float32 n x 4, inclusive corners
    labels: Tensor  # int64 n, thing index
    semantic: Tensor  # uint8 H x W
    masks: Tensor  # bool n x H x W; they may overlap
    given: Samples  # to use instead of drawn ones


def read_truth(path: Path, model: UPSNet, inputs: Inputs) -> Truth:
    """InputError names the array that is missing, unknown, or of a wrong type, shape or value."""
    arrays = _Arrays(path, read_arrays(path))
    height, width = inputs.image.shape[1:]
    labels = arrays.take("gt_classes", Form(INTEGER, (None,), 1, model.num_things)) - 1
    count = len(labels)
    boxes = arrays.take("gt_boxes", Form(REAL, (count, 4)))
    if (boxes[:, 2:] < boxes[:, :2]).any():
        raise InputError(f"{path}: gt_boxes has a box that ends before it begins; they are x1, y1, x2, y2")
    last = model.num_stuff + model.num_things - 1
    semantic = arrays.take("semantic", Form(INTEGER, (height, width), 0, last, void=True))
    if "gt_masks" in arrays.found:
        masks = arrays.take("gt_masks", Form(MASK, (count, height, width))) > 0
    else:
        numbers = arrays.take("instances", Form(INTEGER, (height, width), 0, count))
        masks = numbers == torch.arange(1, count + 1)[:, None, None]
    return Truth(boxes, labels, semantic.byte(), masks, _samples(arrays, model, labels, height, width))


def _samples(arrays: _Arrays, model: UPSNet, labels: Tensor, height: int, width: int) -> Samples:
    """Those that the file has, for instances of the thing indices `labels`."""
    found, count, stuff, things = arrays.found, len(labels), model.num_stuff, model.num_things
    cells = sum(-(-height // stride) * -(-width // stride) for stride in STRIDES)
    anchors = cells * len(model.config.rpn.anchor_ratios)
    rows = found["rois"].size // 4 if "rois" in found else 0
    foreground = int(np.count_nonzero(found.get("roi_labels", 0)))
    unknown = stuff + (found["kept"].size if "kept" in found else 0)
    forms = {
        "rpn_labels": Form(INTEGER, (anchors,), -1, min(1, count)),
        "rois": Form(REAL, (None, 4)),
        "roi_labels": Form(INTEGER, (rows,), 0, things),
        "roi_owners": Form(INTEGER, (rows,)),
        "mask_targets": Form(ANY, (foreground, MASK_SIZE, MASK_SIZE), 0, 1),
        "crop_labels": Form(INTEGER, (count, MASK_SIZE, MASK_SIZE), 0, stuff + things - 1, void=True),
        "kept": Form(INTEGER, (None,), 0, count - 1),
        "panoptic_target": Form(INTEGER, (height // STRIDE, width // STRIDE), 0, unknown, void=True),
    }
    given = Samples(**{name: arrays.take(name, form) for name, form in forms.items() if name in found})
    _check_owners(arrays.path, given, labels)
    return given


def _check_owners(path: Path, given: Samples, labels: Tensor) -> None:
    """Given RoIs are not none, and those of the foreground belong to instances of their own class."""
    if given.rois is None or given.roi_labels is None:
        return
    if len(given.rois) == 0:
        raise InputError(f"{path}: rois is empty; leave it out, and they are drawn")
    foreground = given.roi_labels > 0
    things = given.roi_labels[foreground] - 1
    if not torch.isin(things, labels).all():
        raise InputError(f"{path}: roi_labels has a class that no instance has in gt_classes")
    if given.roi_owners is not None:
        owners = given.roi_owners[foreground]
        inside = (owners >= 0) & (owners < len(labels))
        if not inside.all() or (labels[owners] != things).any():
            raise InputError(f"{path}: roi_owners must be the rows of gt_boxes that the foreground of rois belongs to")


class _Arrays:
    """The arrays of the file, once it is clear that they belong together."""

    def __init__(self, path: Path, found: Arrays) -> None:
        self.path, self.found = path, found
        if missing := [name for name in REQUIRED if name not in found]:
            raise InputError(f"{path}: lacks {', '.join(missing)}")
        if unknown := sorted(found.keys() - {*REQUIRED, *MASKS, *Samples._fields}):
            raise InputError(f"{path}: {', '.join(unknown)}: not arrays that are read; see docs/golden.md")
        if sum(name in found for name in MASKS) != 1:
            raise InputError(f"{path}: give the instances' masks as one of {' and '.join(MASKS)}")
        if lonely := [name for name, other in NEEDS.items() if name in found and other not in found]:
            raise InputError(f"{path}: {lonely[0]} means nothing without {NEEDS[lonely[0]]}")

    def take(self, name: str, form: Form) -> Tensor:
        array, (kinds, shape, low, high, void) = self.found[name], form
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
