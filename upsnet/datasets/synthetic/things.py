"""The things of a scene: shapes in fixed-point arithmetic, drawn into small windows of the canvas."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from upsnet.datasets.synthetic.draws import UNIT, Bools, Draws, Ints
from upsnet.datasets.synthetic.palette import draw_colour
from upsnet.datasets.synthetic.settings import Setting

POLYGONS: dict[str, Ints] = {  # clockwise corners of radius UNIT around the centre, y downwards
    "square": np.array([[-724, -724], [724, -724], [724, 724], [-724, 724]]),
    "triangle": np.array([[0, -1024], [887, 512], [-887, 512]]),
    "star": np.array(
        [
            *([0, -1024], [301, -414], [974, -316], [487, 158], [602, 828]),
            *([0, 512], [-602, 828], [-487, 158], [-974, -316], [-301, -414]),
        ]
    ),
}
HOLLOW = 700  # inner radius of rings and arcs
THIN = 140  # half the width of bent sticks


class Piece(NamedTuple):
    """One shape on the canvas: rows and columns of its window, its mask there, and its colour."""

    rows: slice
    columns: slice
    mask: Bools
    colour: Ints
    whole: int  # pixels of the shape, those outside the canvas included


def shape_mask(name: str, u: Ints, v: Ints) -> Bools:
    """Pixels of the unit shape at fixed-point coordinates u (right) and v (down)."""
    if name == "disk":
        return u * u + v * v <= UNIT * UNIT
    if name in ("ring", "arc"):  # an arc is the upper five eighths of a ring's height
        ring = (u * u + v * v <= UNIT * UNIT) & (u * u + v * v >= HOLLOW * HOLLOW)
        return ring & (v <= UNIT // 4) if name == "arc" else ring
    if name == "bent stick":  # two legs from the corner (-600, 600), with a bow where they meet
        legs = (abs(u + 600) <= THIN) & (v >= -720) & (v <= 600) | (abs(v - 600) <= THIN) & (u <= 720) & (u >= -600)
        return legs | ((u + 600) ** 2 + (v - 600) ** 2 <= THIN * THIN)
    return polygon_mask(POLYGONS[name], u, v)


def polygon_mask(corners: Ints, u: Ints, v: Ints) -> Bools:
    """Half-plane tests only."""
    inside = np.zeros(u.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):  # triangles (centre, a, b)
        between = (ax * v - ay * u >= 0) & (u * by - v * bx >= 0)
        inside |= between & ((bx - ax) * (v - ay) - (by - ay) * (u - ax) >= 0)
    return inside


def make_piece(
    draws: Draws,
    setting: Setting,
    kind: int,
    centre: tuple[int, int],
    reach: int,
    shade: int,
    canvas: tuple[int, int],
) -> Piece:
    """Rasterise a turned, slightly squeezed shape of radius reach / 2 pixels around `centre` (row, column).
    kind: row in the setting's things."""
    thing = setting.things[kind]
    c, s = draws.turn()
    if setting.upright and thing.shape == "triangle" and draws.between(0, 3):
        c, s = UNIT, 0  # most triangles stand upright
    squeeze = draws.between(860, UNIT)
    half = reach // 2 + 1
    dy, dx = np.ogrid[-half : half + 1, -half : half + 1]
    u, v = (dx * c + dy * s) * 2 // reach, (dy * c - dx * s) * 2 * UNIT // (reach * squeeze)
    mask = shape_mask(thing.shape, u, v)
    top, left = centre[0] - half, centre[1] - half
    bottom, right = min(top + len(mask), canvas[0]), min(left + len(mask), canvas[1])
    base = draw_colour(draws, setting, 2 * thing.look)
    seen = mask[max(-top, 0) : bottom - top, max(-left, 0) : right - left]
    return Piece(slice(max(top, 0), bottom), slice(max(left, 0), right), seen, base * shade >> 8, int(mask.sum()))
