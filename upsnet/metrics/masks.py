"""Instance masks at the photo's size, as COCO's run-length codes (hotcoco)."""

from __future__ import annotations

import math

import numpy as np

from upsnet import hotcoco_package


def encode(mask: np.ndarray) -> bytes:
    """bool H x W (fastest in column order) -> compressed COCO counts."""
    return hotcoco_package.load().mask.encode(np.asfortranarray(mask))["counts"]


def paste_and_encode(probabilities: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> list[bytes]:
    """[n, M, M] on boxes [n, 4] (x1, y1, x2, y2 in photo pixels) -> each mask's counts on a photo of size (h, w).

    One canvas serves all masks, so that memory is that of one photo.
    """
    encode = hotcoco_package.load().mask.encode
    canvas = np.zeros(size, np.uint8, order="F")
    coded = []
    for grid, box in zip(probabilities, boxes, strict=True):
        mask, rows, columns = paste(grid, box, size)
        canvas[rows, columns] = mask
        coded.append(encode(canvas)["counts"])
        canvas[rows, columns] = 0
    return coded


def paste(grid: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, slice, slice]:
    """A mask's probabilities [M, M] over its box -> bool window on the photo, and the window's rows and columns.

    Mask R-CNN's rule: a border of one zero cell around the grid, the box grown by (M + 2) / M about its centre,
    bilinear between the centres of cells and pixels, above one half. Boxes are not rounded to pixels first, which
    Detectron and torchvision do and which moves or widens masks by up to a pixel.
    """
    cells = len(grid) + 2
    bordered = np.zeros((cells, cells), np.float32)
    bordered[1:-1, 1:-1] = grid
    x1, y1, x2, y2 = box.tolist()
    columns, across = _weights(x1, x2, cells, size[1])
    rows, down = _weights(y1, y2, cells, size[0])
    return down @ bordered @ across.T > 0.5, rows, columns


def _weights(low: float, high: float, cells: int, length: int) -> tuple[slice, np.ndarray]:
    """Along one axis: the pixels of 0..length - 1 that the box low..high, grown, touches, and for each of them the
    weights float32 [pixels, cells] of the cells that it is interpolated from."""
    cell = max((high - low) / (cells - 2), 1e-6)
    low, high = low - cell, high + cell
    first = min(max(math.floor(low), 0), length)
    last = min(max(math.ceil(high), first), length)
    source = ((np.arange(first, last) + 0.5 - low) / cell - 0.5).clip(0, cells - 1)
    weights = np.maximum(1 - np.abs(source[:, None] - np.arange(cells)), 0)
    return slice(first, last), weights.astype(np.float32)
