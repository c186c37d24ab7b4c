"""The original UPSNet and its hybrid fork: what their files hold, and how a COCO network becomes one for Cityscapes."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from training.config import Config
from training.importers.family import RGB, SAME, Family, Rows, Source, Weights, check_both_kinds
from training.importers.upsnet.keys import FIRST_CONV, original_names
from training.model.classes import Counts, take_classes
from training.model.upsnet import UPSNet
from upsnet.categories import Categories
from upsnet.errors import InputError

# Cityscapes' classes -> the COCO network's detection classes (1 .. 80) and semantic channels (0 .. 132)
COCO_THINGS = {"person": 1, "car": 3, "truck": 8, "bus": 6, "train": 7, "motorcycle": 4, "bicycle": 2}
COCO_CHANNELS = {
    **{"road": 20, "sidewalk": 43, "building": 49, "wall": 51, "fence": 37},
    **{"traffic light": 62, "vegetation": 36, "sky": 39},
    **{name: 52 + label for name, label in COCO_THINGS.items()},
}
COCO_COUNTS = Counts(stuff=53, things=80)


def class_counts(weights: Weights, path: Path) -> tuple[int, int]:
    """Stuff and thing classes of an original's weights. InputError: they are not those of a UPSNet."""
    names = ("fcn_head.score.weight", "rcnn.cls_score.weight")
    scores = [weights.get(key) for key in names]
    if scores[0] is None or scores[1] is None or not scores[0].ndim or not scores[1].ndim:
        raise InputError(f"{path}: no UPSNet: lacks {' or '.join(names)}")
    things = len(scores[1]) - 1
    stuff = len(scores[0]) - things
    check_both_kinds(stuff, things, "UPSNet", " and ".join(names), path)
    return stuff, things


def prepare(weights: Weights, settings: Config, source: Path) -> tuple[Weights, list[str]]:
    """All are of use."""
    return weights, []


def sources(model: UPSNet) -> dict[str, Source]:
    names = original_names(model)
    return {key: Source(name, RGB if name == FIRST_CONV else SAME) for key, name in names.items()}


UPSNET = Family(
    name="the original UPSNet",
    beginnings=("resnet_backbone.", "fcn_head.", "rcnn."),
    settings={
        "model.conventions": "upsnet",
        "model.semantic_head.kind": "subnet",
        "model.panoptic.merge": "logits",
        "model.fpn.norm": "none",
        "model.semantic_head.norm": "none",
        "model.mask_head.norm": "none",
    },
    configs="a coco_*.yaml of training/configs with --set model.conventions=upsnet",
    class_counts=class_counts,
    class_rows={
        "classes in all": {"fcn_head.score": Rows()},
        "thing classes": {
            "rcnn.cls_score": Rows(more=1),
            "rcnn.bbox_pred": Rows(per_class=4, more=4),
            "mask_branch.mask_score": Rows(more=1),
        },
    },
    prepare=prepare,
    sources=sources,
)


def to_cityscapes(
    fresh: dict[str, Tensor], coco: dict[str, Tensor], categories: Categories
) -> tuple[dict[str, Tensor], list[str]]:
    """The state_dict of a Cityscapes network from a COCO network's, and lines that say which class came from where.

    A class that COCO does not have keeps its weights in `fresh`, a new Cityscapes network. InputError: the categories
    are not those of Cityscapes.
    """
    names = categories.names
    unknown = [name for name in COCO_CHANNELS if name not in names]
    if unknown:
        raise InputError(f"--to-cityscapes: the categories lack {', '.join(unknown)}; give those of Cityscapes")
    things = names[categories.num_stuff :]
    labels = {name: channel - 52 for name, channel in COCO_CHANNELS.items() if name in things and channel > 52}
    pairs = {names.index(name): channel for name, channel in COCO_CHANNELS.items()}
    state = take_classes(fresh, coco, pairs, Counts(categories.num_stuff, categories.num_things), COCO_COUNTS)

    def origins(table: dict[str, int], present: list[str]) -> str:
        rows = ", ".join(f"{name} <- {index}" for name, index in table.items())
        return f"{rows}; random: {', '.join(name for name in present if name not in table) or 'none'}"

    return state, [
        f"boxes and masks: background <- 0, {origins(labels, things)}",
        f"semantic channels: {origins(COCO_CHANNELS, names)}",
    ]
