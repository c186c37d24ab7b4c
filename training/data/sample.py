"""One training sample: what the data set gives and a batch is made of."""

from __future__ import annotations

from typing import TypedDict

from torch import Tensor

IGNORE = 255  # semantic label of void (where there is stuff), crowds and padding


class Sample(TypedDict):
    """One image of h x w network pixels, not padded, with n instances."""

    image: Tensor  # uint8 3 x h x w, RGB
    semantic: Tensor  # uint8 h x w: channel of the semantic head, or IGNORE; without stuff void is channel 0
    instances: Tensor  # int16 h x w: 0, or 1 + row in boxes; the visible pixels, which no two instances share
    boxes: Tensor  # float32 n x 4: x1, y1, x2, y2, tight, x2 and y2 exclusive
    labels: Tensor  # int64 n: thing index, 0 is the first thing
    image_id: int
    size: tuple[int, int]  # h, w
    scale: float  # network pixels for one original pixel
    seed: int  # of the random draws that the losses make for this image; from 0 up, below 2^63
