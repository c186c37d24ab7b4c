"""Things of one sample on another (Ghiasi et al., Simple Copy-Paste is a Strong Data Augmentation Method for Instance
Segmentation, CVPR 2021)."""

from __future__ import annotations

import numpy as np
import torch

from training.data.sample import IGNORE, Sample
from upsnet.run_lengths import find_runs, measure_runs, paint

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
    pasted = numbers.take(donated)
    on_top = pasted > 0

    def composed(lower: np.ndarray, upper: np.ndarray, void: int) -> np.ndarray:
        whole = np.full((height, width, *lower.shape[2:]), void, lower.dtype)
        whole[: lower.shape[0], : lower.shape[1]] = lower
        np.copyto(whole[here], upper, where=on_top.reshape(*on_top.shape, *[1] * (lower.ndim - 2)))
        return whole

    before = sample["instances"].numpy().astype(np.int32)
    image = composed(_pixels(sample), _pixels(donor)[seen], 0)
    semantic = composed(sample["semantic"].numpy(), donor["semantic"].numpy()[seen], IGNORE)
    instances, rows, boxes, void = _still_seen(composed(before, pasted, 0), before)
    semantic[void] = IGNORE
    return Sample(
        image=torch.from_numpy(image).permute(2, 0, 1),
        semantic=torch.from_numpy(semantic),
        instances=torch.from_numpy(instances),
        boxes=torch.from_numpy(boxes),
        labels=torch.cat([sample["labels"], donor["labels"][torch.from_numpy(chosen - 1)]])[torch.from_numpy(rows)],
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
    large = 1 + np.flatnonzero(_areas(donated, 1 + count)[1:] >= LEAST)
    chosen = large[draws.random(len(large)) < 0.5]
    return chosen if len(chosen) or not len(large) else large[[draws.integers(len(large))]]


def _still_seen(after: np.ndarray, before: np.ndarray) -> tuple[np.ndarray, ...]:
    """The map with consecutive numbers, int16; rows (number - 1) and boxes of those that it still has; and a map of
    what is left of instances that lost pixels and have fewer than LEAST."""
    runs = find_runs(after)
    measured = measure_runs(runs)
    thing, least = measured.ids > 0, measured.areas < LEAST
    gone = thing & least & (measured.areas < _areas(before, 1 + measured.ids.max())[measured.ids])
    rows, boxes = measured.ids[thing & ~gone] - 1, measured.boxes[thing & ~gone].astype(np.float32)
    boxes[:, 2:] += boxes[:, :2]
    consecutive = np.zeros(1 + measured.ids.max(), np.int16)
    consecutive[1 + rows] = 1 + np.arange(len(rows))
    return paint(runs, consecutive[runs.values]), rows, boxes, paint(runs, np.isin(runs.values, measured.ids[gone]))


def _areas(instances: np.ndarray, length: int) -> np.ndarray:
    """int64 `length`: the pixels of each number."""
    measured, areas = measure_runs(find_runs(instances)), np.zeros(length, np.int64)
    areas[measured.ids] = measured.areas
    return areas
