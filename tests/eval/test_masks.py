from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from torchvision.models.detection.roi_heads import paste_masks_in_image

from eval.masks import encode, paste, paste_and_encode


def decoded(counts: bytes, size: tuple[int, int]) -> np.ndarray:
    return rle.decode({"size": list(size), "counts": counts}).astype(bool)


@pytest.mark.parametrize("size", [(60, 80), (33, 17)])
def test_agrees_with_torchvision(size: tuple[int, int]) -> None:
    """Boxes of all sizes, some of them partly outside the photo or without area."""
    rng = np.random.default_rng(0)
    inside = np.array([size[1], size[0]])
    boxes = np.concatenate([rng.uniform(-15, inside, (60, 2)), rng.uniform(0, inside + 15, (60, 2))], axis=1)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2])
    boxes = boxes.astype(np.float32)
    boxes[-1] = 5, 5, 5, 5
    grids = rng.random((60, 28, 28)).astype(np.float32)
    wanted = paste_masks_in_image(torch.from_numpy(grids)[:, None], torch.from_numpy(boxes), size)[:, 0].numpy()
    for grid, box, full, counts in zip(grids, boxes, wanted, paste_and_encode(grids, boxes, size), strict=True):
        mine = decoded(counts, size)
        different = mine != (full > 0.5)
        assert (np.abs(full[different] - 0.5) < 1e-5).all(), "but for roundings at exactly one half"
        window, rows, columns = paste(grid, box, size)
        assert np.array_equal(mine[rows, columns], window) and mine.sum() == window.sum()
    assert wanted.any()


def test_a_full_mask_fills_its_box() -> None:
    """But for the rounding to whole pixels."""
    counts = paste_and_encode(np.ones((1, 28, 28), np.float32), np.array([[10, 20, 38, 48]]), (60, 60))
    mask = decoded(counts[0], (60, 60))
    wanted = np.zeros((60, 60), bool)
    wanted[20:48, 10:38] = True
    assert np.abs(mask.sum() - wanted.sum()) <= 2 * 28 and (mask & wanted).sum() >= 27 * 27


def test_outside_the_photo_is_empty() -> None:
    for box in ([[-50, 5, -20, 20]], [[30, 5, 50, 20]], [[2, 40, 8, 60]]):
        counts = paste_and_encode(np.ones((1, 28, 28), np.float32), np.array(box, np.float32), (20, 10))
        assert not decoded(counts[0], (20, 10)).any()


def test_nothing_above_a_half_is_an_empty_mask() -> None:
    counts = paste_and_encode(np.full((1, 28, 28), 0.4, np.float32), np.array([[1, 1, 9, 9]], np.float32), (10, 12))
    assert not decoded(counts[0], (10, 12)).any()


def test_encode_takes_any_layout() -> None:
    mask = np.random.default_rng(0).random((7, 9)) > 0.5
    assert encode(mask) == encode(np.asfortranarray(mask))
    assert np.array_equal(decoded(encode(mask), (7, 9)), mask)
