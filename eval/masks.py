"""Instance masks at the photo's size, as run-length codes (pycocotools)."""

from __future__ import annotations

import numpy as np
from pycocotools import mask as rle


def encode(mask: np.ndarray) -> bytes:
    """bool H x W (fastest in column order) -> compressed COCO counts."""
    return rle.encode(np.asfortranarray(mask.view(np.uint8)))["counts"]


def paste_and_encode(probabilities: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> list[bytes]:
    """[n, M, M] on boxes [n, 4] (x1, y1, x2, y2, photo pixels) -> the counts of each mask on a photo of size (h, w).

    One canvas serves all masks, so that memory is that of one photo.
    """
    canvas = np.zeros(size, np.uint8, order="F")
    coded = []
    for grid, box in zip(probabilities, boxes, strict=True):
        mask, rows, columns = paste(grid, box, size)
        canvas[rows, columns] = mask
        coded.append(rle.encode(canvas)["counts"])
        canvas[rows, columns] = 0
    return coded


def paste(grid: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, slice, slice]:
    """A mask's probabilities [M, M] over its box -> bool window on the photo, and the window's rows and columns.

    Mask R-CNN's rule: a border of one zero cell around the grid, the box grown by (M + 2) / M about its centre and cut
    to whole pixels, bilinear (half-pixel centres), above one half.
    """
    cells = len(grid) + 2
    bordered = np.zeros((cells, cells), np.float32)
    bordered[1:-1, 1:-1] = grid
    half = (box[2:] - box[:2]) * np.float32(0.5) * np.float32(cells / len(grid))
    centre = (box[2:] + box[:2]) * np.float32(0.5)
    low, high = np.trunc(centre - half).astype(np.int64), np.trunc(centre + half).astype(np.int64)
    columns, across = _weights(int(low[0]), int(high[0]), cells, size[1])
    rows, down = _weights(int(low[1]), int(high[1]), cells, size[0])
    return down @ bordered @ across.T > 0.5, rows, columns


def _weights(low: int, high: int, cells: int, length: int) -> tuple[slice, np.ndarray]:
    """Pixels low..high of an axis that lie in 0..length-1, and for each the weights float32 [pixels, cells] of the
    cells that the whole span low..high is interpolated from."""
    first, last = max(low, 0), min(high + 1, length)
    pixels = np.arange(first, max(first, last), dtype=np.float32) - np.float32(low)
    span = np.float32(max(high - low + 1, 1))
    source = np.clip((pixels + np.float32(0.5)) * (np.float32(cells) / span) - np.float32(0.5), 0, cells - 1)
    weights = np.maximum(1 - np.abs(source[:, None] - np.arange(cells, dtype=np.float32)), 0)
    return slice(first, max(first, last)), weights
