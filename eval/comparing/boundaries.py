"""The places of the network at which two of them are compared, and what each place gave for one photo."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

LEVELS = 5  # P2..P6
PHOTO, STEM, SEMANTIC = "normalised photo", "stem", "semantic logits"
STAGES = ("C2", "C3", "C4", "C5")
PYRAMID = ("P2", "P3", "P4", "P5", "P6")
RPN_LOGITS, RPN_DELTAS, PROPOSALS = "RPN logits", "RPN deltas", "proposals"
BOX_LOGITS, BOX_DELTAS = "box logits", "box deltas"
DETECTIONS, SCORES, MASKS, PANOPTIC = "detections", "scores", "mask logits", "panoptic map"

# In the order of computation, with the module that gives it.
PLACES = {
    PHOTO: "UPSNet.normalize",
    STEM: "backbone, before its stages",
    **{name: f"backbone, stage {number}" for number, name in enumerate(STAGES, 1)},
    **{name: "fpn" for name in PYRAMID},
    SEMANTIC: "semantic_head",
    RPN_LOGITS: "rpn.logits",
    RPN_DELTAS: "rpn.deltas",
    PROPOSALS: "RPN.propose",
    BOX_LOGITS: "box_head.logits",
    BOX_DELTAS: "box_head.deltas",
    DETECTIONS: "UPSNet.select",
    SCORES: "UPSNet.select",
    MASKS: "mask_head",
    PANOPTIC: "panoptic head",
}
# A stem's last module is the first of these that the network has.
STEMS = (
    *("backbone.stem", "backbone.network.maxpool", "backbone.network.act1", "backbone.network.bn1"),
    *("backbone.network.stem", "backbone.network.stem_1"),
)
BLOCK = re.compile(r"backbone\.(?:stages\.\d+|network\.\w+)\.\d+")  # the modules that a stage is made of


class Instances(NamedTuple):
    """Boxes of one photo, without padding, each with what else is said of it."""

    boxes: np.ndarray  # N x 4, x1, y1, x2, y2 in network pixels
    labels: np.ndarray | None = None  # N
    scores: np.ndarray | None = None  # N
    masks: np.ndarray | None = None  # N x M x M
    logits: np.ndarray | None = None  # N x (1 + T)
    deltas: np.ndarray | None = None  # N x 4 (1 + T)


class Outputs(NamedTuple):
    """What a network gave for one photo: arrays by the place's name, instances by theirs, and the graph's outputs."""

    arrays: dict[str, np.ndarray]
    proposals: Instances | None
    detections: Instances | None
    panoptic: np.ndarray  # uint8 1 x H x W
    segments: np.ndarray  # float32 1 x K x 7
    segment_count: np.ndarray  # int32 1


def split_rpn(maps: list[np.ndarray]) -> dict[str, np.ndarray]:
    """The RPN's maps, B x 5A x h x w, as logits and deltas of all levels one after the other."""
    anchors = [each.shape[1] // 5 for each in maps]
    logits = [each[:, :count].ravel() for each, count in zip(maps, anchors, strict=True)]
    deltas = [each[:, count:].ravel() for each, count in zip(maps, anchors, strict=True)]
    return {RPN_LOGITS: np.concatenate(logits), RPN_DELTAS: np.concatenate(deltas)}


def real_proposals(boxes: np.ndarray, logits: np.ndarray | None, deltas: np.ndarray | None) -> Instances:
    """Of one photo's R x 4 rows those with an area: padding is zero. logits, deltas: of all R rows."""
    rows = ((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])).nonzero()[0]
    heads = [None if each is None else each.reshape(len(boxes), -1)[rows] for each in (logits, deltas)]
    return Instances(boxes[rows], logits=heads[0], deltas=heads[1])


def order(names: set[str]) -> list[str]:
    """Places and blocks in the order of computation; a block stands before the stage that it is in."""
    known = list(PLACES)
    blocks = sorted(names - PLACES.keys(), key=_numbers)
    stages = [name for name in known if name in STAGES]
    ordered = [name for name in known if name in names]
    for block in blocks:
        stage = stages[min(_stage(block, blocks), len(stages) - 1)]
        place = ordered.index(stage) if stage in ordered else len(ordered)
        ordered.insert(place, block)
    return ordered


def _numbers(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def _stage(block: str, blocks: list[str]) -> int:
    parents = list(dict.fromkeys(each.rpartition(".")[0] for each in blocks))
    return parents.index(block.rpartition(".")[0])
