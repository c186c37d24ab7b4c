"""The ground of a scene: stuff regions, their textures, and which class a texture is where only context tells."""

from __future__ import annotations

import numpy as np

from upsnet.datasets.synthetic.draws import UNIT, Draws, Ints, smooth_noise
from upsnet.datasets.synthetic.palette import draw_colour
from upsnet.datasets.synthetic.settings import Light, Setting, StuffClass

LEAST_BORDER = 10  # pairs of pixels along which regions must touch to be neighbours


def stuff_regions(
    draws: Draws, setting: Setting, light: Light | None, height: int, width: int
) -> tuple[Ints, list[StuffClass]]:
    """Row of the classes for every pixel (-1 on the seams) and the class of every region: warped Voronoi cells."""
    y, x = np.ogrid[:height, :width]
    bend_y, bend_x = (smooth_noise(draws, height, width, 32) - 128 for _ in range(2))
    while True:
        most = 4 if height * width > 96 * 96 else 3
        patterns = draws.sample(draws.between(setting.least_regions, most), len(setting.patterns))
        region = cells(draws, y + bend_y // 10, x + bend_x // 10, len(patterns))
        classes = classes_in_context(setting, light, region, [setting.patterns[row] for row in patterns])
        if classes:
            return np.where(seams(region), -1, region), classes


def cells(draws: Draws, y: Ints, x: Ints, count: int) -> Ints:
    """0..count-1 for every pixel: the nearest of `count` centres, none of which has less than an eighth of them."""
    height, width = y.shape
    while True:
        cy, cx = draws.field((count, 1, 1), 0, height - 1), draws.field((count, 1, 1), 0, width - 1)
        region = np.argmin((y - cy) ** 2 + (x - cx) ** 2, axis=0)
        if np.bincount(region.ravel(), minlength=count).min() * 8 >= height * width:
            return region


def seams(region: Ints) -> np.ndarray:
    seam = np.zeros(region.shape, dtype=bool)
    seam[:-1] |= region[1:] != region[:-1]
    seam[:, :-1] |= region[:, 1:] != region[:, :-1]
    return seam


def neighbours(region: Ints, row: int) -> set[int]:
    """The regions that touch the region `row` along at least LEAST_BORDER pairs of pixels."""
    pairs = [(region[1:], region[:-1]), (region[:-1], region[1:])]
    pairs += [(region[:, 1:], region[:, :-1]), (region[:, :-1], region[:, 1:])]
    met = np.bincount(np.concatenate([other[own == row] for own, other in pairs]), minlength=region.max() + 1)
    return {int(other) for other in np.flatnonzero(met >= LEAST_BORDER)} - {row}


def classes_in_context(
    setting: Setting, light: Light | None, region: Ints, patterns: list[str]
) -> list[StuffClass] | None:
    """The class of every region; None where the context of one does not tell it."""
    classes = []
    for row, pattern in enumerate(patterns):
        beside = {patterns[other] for other in neighbours(region, row)}
        fits = [
            each
            for each in setting.stuff
            if each.pattern == pattern
            and each.light in (None, light)
            and (each.beside is None or each.beside in beside)
        ]
        if len(fits) != 1:
            return None
        classes += fits
    return classes


def texture(draws: Draws, setting: Setting, stuff: StuffClass, height: int, width: int) -> Ints:
    """Colours H x W x 3 of one stuff class: two tones of one palette entry in the class's pattern."""
    base = draw_colour(draws, setting, 2 * stuff.look + 3)
    light, dark = base * draws.between(236, 276) >> 8, base * draws.between(150, 180) >> 8
    c, s = draws.turn()
    y, x = np.ogrid[:height, :width]
    u, v = x * c + y * s + draws.between(0, 16 * UNIT), y * c - x * s + draws.between(0, 16 * UNIT)
    blend = pattern(draws, stuff.pattern, u, v)
    return (light * (256 - blend[..., None]) + dark * blend[..., None]) >> 8


def pattern(draws: Draws, name: str, u: Ints, v: Ints) -> Ints:
    """0 (light) to 256 (dark) at fixed-point coordinates u, v of the pixels."""
    height, width = u.shape
    if name == "stripes":
        return (u // (draws.between(5, 8) * UNIT // 2) & 1) * 256
    if name == "checks":
        step = draws.between(4, 6) * UNIT
        return ((u // step ^ v // step) & 1) * 256
    if name == "dots":
        step = draws.between(6, 9) * UNIT
        v = v + (u // step & 1) * (step // 2)  # every second row is shifted
        return ((u % step - step // 2) ** 2 + (v % step - step // 2) ** 2 < (step * 5 // 16) ** 2) * 256
    if name == "grit":
        grains = draws.field((height // 2 + 1, width // 2 + 1), 0, 2) == 0
        return np.repeat(np.repeat(grains, 2, axis=0), 2, axis=1)[:height, :width] * 256
    if name == "weave":
        step = draws.between(4, 5) * UNIT // 2
        across = (u // (4 * step) ^ v // (4 * step)) & 1
        return (np.where(across == 1, u // step, v // step) & 1) * 256
    blend = (2 * smooth_noise(draws, height, width, 16) + smooth_noise(draws, height, width, 7)) // 3
    return np.clip((blend - 128) * 2 + 128, 0, 256)
