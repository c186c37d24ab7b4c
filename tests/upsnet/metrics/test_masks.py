from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as rle
from torchvision.models.detection.roi_heads import paste_masks_in_image

from upsnet.metrics.masks import encode, paste, paste_and_encode


def decoded(counts: bytes, size: tuple[int, int]) -> np.ndarray:
    return rle.decode({"size": list(size), "counts": counts}).astype(bool)


def by_grid_sample(grid: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Probabilities float H x W: the mask sampled at the pixels' centres, zero outside the box (a border of zeros)."""
    x1, y1, x2, y2 = box.tolist()
    y = (torch.arange(size[0]) + 0.5 - y1) / (y2 - y1) * 2 - 1
    x = (torch.arange(size[1]) + 0.5 - x1) / (x2 - x1) * 2 - 1
    places = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    mask = torch.from_numpy(grid)[None, None]
    return F.grid_sample(mask, places[None], padding_mode="zeros", align_corners=False)[0, 0].numpy()


@pytest.mark.parametrize("size", [(60, 80), (33, 17)])
def test_agrees_with_sampling_every_pixel(size: tuple[int, int]) -> None:
    """Boxes of all sizes, some of them partly or wholly outside the photo."""
    rng = np.random.default_rng(0)
    inside = np.array([size[1], size[0]])
    corners = rng.uniform(-15, inside + 15, (60, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0.5, inside, (60, 2))], axis=1).astype(np.float32)
    grids = rng.random((60, 28, 28)).astype(np.float32)
    for grid, box, counts in zip(grids, boxes, paste_and_encode(grids, boxes, size), strict=True):
        full, mine = by_grid_sample(grid, box, size), decoded(counts, size)
        assert (np.abs(full[mine != (full > 0.5)] - 0.5) < 1e-4).all(), "but for roundings at exactly one half"
        window, rows, columns = paste(grid, box, size)
        assert np.array_equal(mine[rows, columns], window) and mine.sum() == window.sum()


def test_within_a_pixel_of_torchvision() -> None:
    """Which rounds boxes to pixels: a disc's outline differs by less than its length."""
    y, x = np.mgrid[:28, :28] - 13.5
    disc = (1 / (1 + np.exp(np.hypot(y, x) - 10))).astype(np.float32)
    box = np.array([10.3, 5.6, 90.9, 70.2], np.float32)
    mine = decoded(paste_and_encode(disc[None], box[None], (100, 120))[0], (100, 120))
    theirs = paste_masks_in_image(torch.from_numpy(disc)[None, None], torch.from_numpy(box)[None], (100, 120))
    different = (mine != (theirs[0, 0].numpy() > 0.5)).sum()
    assert 0 < different < np.pi * 60 and mine.sum() == pytest.approx(np.pi * 28.8 * 23.1, rel=0.05)


def test_a_full_mask_fills_its_box() -> None:
    counts = paste_and_encode(np.ones((1, 28, 28), np.float32), np.array([[10, 20, 38, 48]]), (60, 60))
    mask = decoded(counts[0], (60, 60))
    wanted = np.zeros((60, 60), bool)
    wanted[20:48, 10:38] = True
    assert np.array_equal(mask, wanted)


def test_outside_the_photo_and_without_area_is_empty() -> None:
    for box in ([[-50, 5, -20, 20]], [[30, 5, 50, 20]], [[2, 40, 8, 60]], [[5, 5, 5, 5]]):
        counts = paste_and_encode(np.ones((1, 28, 28), np.float32), np.array(box, np.float32), (20, 10))
        assert not decoded(counts[0], (20, 10)).any()


def test_nothing_above_a_half_is_an_empty_mask() -> None:
    counts = paste_and_encode(np.full((1, 28, 28), 0.4, np.float32), np.array([[1, 1, 9, 9]], np.float32), (10, 12))
    assert not decoded(counts[0], (10, 12)).any()


def test_encode_takes_any_layout() -> None:
    mask = np.random.default_rng(0).random((7, 9)) > 0.5
    assert encode(mask) == encode(np.asfortranarray(mask))
    assert np.array_equal(decoded(encode(mask), (7, 9)), mask)
