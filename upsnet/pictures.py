"""Pictures inside a page."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

SIDE = 640  # no picture has a longer one
QUALITY = 82  # of a JPEG


def reduced(array: np.ndarray, side: int = SIDE, resampling: Image.Resampling = Image.Resampling.LANCZOS) -> np.ndarray:
    """H x W or H x W x 3 with its longer side at most `side`; a map of ids wants Image.Resampling.NEAREST."""
    height, width = array.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return array
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(array).resize(size, resampling))


def embed(image: np.ndarray, side: int = SIDE) -> str:
    """uint8 H x W x 3 as a data: address, JPEG, no side longer than `side`."""
    buffer = io.BytesIO()
    Image.fromarray(reduced(image, side)).save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
