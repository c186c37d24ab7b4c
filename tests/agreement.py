"""Two executors' answers to the same images, whose arithmetic differs in the last bits."""

from __future__ import annotations

import numpy as np

from upsnet.runtimes.predictor import RawPrediction

SMALL = 50  # pixels: a smaller segment may come and go where two labels nearly tie


def compare_segments(found: RawPrediction, expected: RawPrediction, score: float) -> tuple[float, list[str]]:
    """The share of pixels in segments that agree, and the segments that agree with none, small ones aside.

    Two segments agree when their IoU is over .5, their category the same, and their scores within `score`.
    """
    assert found.panoptic.shape == expected.panoptic.shape
    same, alone = 0, []
    for image, maps in enumerate(zip(found.panoptic, expected.panoptic, strict=True)):
        common = np.zeros((256, 256), np.int64)  # pixels of each two segments; 0 is void
        np.add.at(common, maps, 1)
        areas, others = common.sum(1), common.sum(0)
        ours, theirs = (np.vstack([[-1, 0], each.segments[image, :, :2]]) for each in (found, expected))
        overlapping = np.argwhere(2 * common > areas[:, None] + others - common).tolist()
        agreeing = [(one, other) for one, other in overlapping if abs(ours[one] - theirs[other]).max() <= score]
        for index, (side, pixels) in enumerate((("found", areas), ("expected", others))):
            unmatched = set(np.flatnonzero(pixels >= SMALL).tolist()) - {pair[index] for pair in agreeing}
            alone += [f"image {image}, {side}: {row}" for row in sorted(unmatched)]
        same += sum(common[pair] for pair in agreeing)
    return same / found.panoptic.size, alone


def assert_same_segments(
    found: RawPrediction, expected: RawPrediction, *, identical: float = 0.999, score: float = 1e-4
) -> None:
    """Every segment that is not small agrees with one, and at least `identical` of the pixels lie in such pairs."""
    share, alone = compare_segments(found, expected, score)
    assert not alone
    assert share >= identical
