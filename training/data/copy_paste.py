"""Things of one sample on another (Ghiasi et al., Simple Copy-Paste is a Strong Data Augmentation Method for Instance
Segmentation, CVPR 2021)."""

from __future__ import annotations

import numpy as np
import torch

from training.data.sample import IGNORE, Sample
from upsnet.run_lengths import find_runs, measure_runs

LEAST = 5  # pixels: what has fewer is not pasted, and what is left with fewer is removed


def paste_things(sample: Sample, donor: Sample, most: tuple[int, int], draws: np.random.Generator) -> Sample:
    """`sample` with a random part of the donor's instances on top, at least one; `sample` as it is where none of them
    has LEAST pixels to give.

    As in the paper, both lie on one canvas: where the donor is larger, `sample` is padded with zeros and void, right
    and bottom, to its size, but no farther than to `most` (height, width). The donor lies on it at a random place;
    where it is larger than the canvas, a random window of it does. Instances of `sample` lose the pixels that are
    covered, and those that are left with fewer than LEAST are removed: what they had left is void. Id, scale and seed
    are those of `sample`.
    """
    height, width = (
        max(own, min(other, limit)) for own, other, limit in zip(sample["size"], donor["size"], most, strict=True)
    )
    meetings = [_meet(*sides, draws) for sides in zip(donor["size"], (height, width), strict=True)]
    seen, here = (tuple(slices) for slices in zip(*meetings, strict=True))
    donated = donor["instances"].numpy()[seen]
    chosen = _choose(donated, len(donor["labels"]), draws)
    if not len(chosen):
        return sample
    numbers = np.zeros(1 + len(donor["labels"]), np.int32)
    numbers[chosen] = len(sample["labels"]) + 1 + np.arange(len(chosen))
    pasted = numbers[donated]

    def composed(lower: np.ndarray, upper: np.ndarray, void: int) -> np.ndarray:
        whole = np.full((height, width, *lower.shape[2:]), void, lower.dtype)
        whole[: lower.shape[0], : lower.shape[1]] = lower
        whole[here][pasted > 0] = upper[pasted > 0]
        return whole

    labels = torch.cat([sample["labels"], donor["labels"][torch.from_numpy(chosen - 1)]])
    before = sample["instances"].numpy().astype(np.int32)
    instances = composed(before, pasted, 0)
    semantic = composed(sample["semantic"].numpy(), donor["semantic"].numpy()[seen], IGNORE)
    vanished = _vanished(before, instances, len(labels))[instances]
    semantic[vanished], instances[vanished] = IGNORE, 0
    rows, boxes, instances = _renumbered(instances)
    image = composed(_pixels(sample), _pixels(donor)[seen], 0)
    return Sample(
        image=torch.from_numpy(image).permute(2, 0, 1),
        semantic=torch.from_numpy(semantic),
        instances=torch.from_numpy(instances),
        boxes=torch.from_numpy(boxes),
        labels=labels[torch.from_numpy(rows)],
        image_id=sample["image_id"],
        size=(height, width),
        scale=sample["scale"],
        seed=sample["seed"],
    )


def _pixels(sample: Sample) -> np.ndarray:
    return sample["image"].permute(1, 2, 0).numpy()


def _meet(side: int, canvas: int, draws: np.random.Generator) -> tuple[slice, slice]:
    """Along one axis: the part of the donor that is seen, and where on the canvas it lies."""
    length, start = min(side, canvas), int(draws.integers(abs(side - canvas) + 1))
    moved, fixed = slice(start, start + length), slice(0, length)
    return (moved, fixed) if side > canvas else (fixed, moved)


def _choose(donated: np.ndarray, count: int, draws: np.random.Generator) -> np.ndarray:
    """The numbers that are pasted, rising: of those with LEAST pixels each by the toss of a coin, or else one."""
    areas = np.bincount(donated.ravel(), minlength=1 + count)
    large = 1 + np.flatnonzero(areas[1:] >= LEAST)
    chosen = large[draws.random(len(large)) < 0.5]
    return chosen if len(chosen) or not len(large) else large[[draws.integers(len(large))]]


def _vanished(before: np.ndarray, after: np.ndarray, count: int) -> np.ndarray:
    """Of every number, 0 to count, whether it lost pixels and is left with fewer than LEAST."""
    had, left = (np.bincount(each.ravel(), minlength=1 + count) for each in (before, after))
    gone = (left < LEAST) & (left < had)
    gone[0] = False
    return gone


def _renumbered(instances: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows (number - 1) that are there, rising, their boxes, and the map with consecutive numbers: int16."""
    measured = measure_runs(find_runs(instances))
    there = measured.ids > 0
    numbers, boxes = measured.ids[there], measured.boxes[there]
    consecutive = np.zeros(1 + measured.ids.max(), np.int16)
    consecutive[numbers] = 1 + np.arange(len(numbers))
    boxes[:, 2:] += boxes[:, :2]
    return numbers - 1, boxes.astype(np.float32), consecutive[instances]
