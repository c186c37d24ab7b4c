from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from upsnet.pictures import embed, reduced


def test_large_pictures_shrink() -> None:
    data = base64.b64decode(embed(np.zeros((2000, 1000, 3), np.uint8)).split(",")[1])
    assert Image.open(io.BytesIO(data)).size == (320, 640)


def test_reduced_maps_keep_their_ids() -> None:
    ids = np.repeat(np.array([[7, 16_000_000]], np.int32), 1000, axis=1).repeat(10, axis=0)
    small = reduced(ids, 100, Image.Resampling.NEAREST)
    assert small.shape == (1, 100) and small.dtype == np.int32 and set(small.flat) == {7, 16_000_000}
    assert reduced(small, 100) is small
