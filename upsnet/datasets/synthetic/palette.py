"""Colours. They are shared: every one occurs on things and on stuff, so that colour alone does not tell them apart."""

from __future__ import annotations

import numpy as np

from upsnet.datasets.synthetic.draws import Draws, Ints
from upsnet.datasets.synthetic.settings import Setting

CORAL, ORANGE, BLUE, SKY = (226, 96, 84), (240, 160, 84), (74, 128, 196), (112, 170, 214)
GREEN, LIME, YELLOW, VIOLET = (92, 166, 110), (160, 190, 104), (236, 200, 96), (178, 116, 182)
RED, PINK, NAVY, TEAL = (190, 44, 64), (244, 172, 196), (64, 70, 150), (60, 152, 152)
OLIVE, BROWN, WHITE, GREY = (128, 130, 56), (140, 92, 58), (228, 228, 220), (136, 138, 146)
PALETTE: Ints = np.array(
    [
        *(CORAL, ORANGE, BLUE, SKY, GREEN, LIME, YELLOW, VIOLET),
        *(RED, PINK, NAVY, TEAL, OLIVE, BROWN, WHITE, GREY),
    ]
)


def draw_colour(draws: Draws, setting: Setting, first: int) -> Ints:
    """Of the setting's colours, usually the one in row `first` or the one after it."""
    typical = first % setting.colours, (first + 1) % setting.colours
    return PALETTE[draws.pick(typical) if draws.between(0, setting.odds) else draws.between(0, setting.colours - 1)]
