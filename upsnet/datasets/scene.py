"""One synthetic panoptic scene: textured stuff regions, clusters of touching shapes, now and then a crowd.

A scene is a function of (seed, index, size list, setting) alone and has the same pixels on every machine: every step is
integer arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from upsnet.datasets.synthetic.canvas import Canvas, dilate
from upsnet.datasets.synthetic.draws import Draws, Ints, smooth_noise
from upsnet.datasets.synthetic.settings import EASY, Setting, StuffClass
from upsnet.datasets.synthetic.stuff import stuff_regions, texture
from upsnet.datasets.synthetic.things import Piece
from upsnet.run_lengths import areas_and_boxes

SIZES: tuple[tuple[int, int], ...] = ((96, 96), (96, 128), (128, 96), (112, 112))  # height, width
GROUT = np.array([44, 42, 52])  # the void seams between stuff regions
LEAST_STUFF = 40  # a visible stuff region of fewer pixels becomes void


class Scene(NamedTuple):
    """image uint8 H x W x 3; ids int32 H x W (24-bit segment ids, 0 void); segments: COCO segments_info dicts."""

    image: NDArray[np.uint8]
    ids: NDArray[np.int32]
    segments: list[dict[str, Any]]


def draw_scene(seed: int, index: int, sizes: Sequence[tuple[int, int]] = SIZES, setting: Setting = EASY) -> Scene:
    """The scene number `index` of data set `seed`; sizes: the (height, width) to draw from, each side at least 64."""
    draws = Draws(seed, index)
    height, width = draws.pick(sizes)
    lit = draws.pick(setting.lights) if setting.lights else None
    region, classes = stuff_regions(draws, setting, lit, height, width)
    image = np.broadcast_to(GROUT, (height, width, 3)).astype(np.int64)
    for row, stuff in enumerate(classes):
        image = np.where((region == row)[..., None], texture(draws, setting, stuff, height, width), image)

    canvas = Canvas(draws, setting, height, width)
    paint(image, crumbs(canvas))
    fill(canvas)
    paint(image, [piece for thing in canvas.things for piece in thing.pieces])

    light = 226 + smooth_noise(draws, height, width, 48) * 44 // 255
    if lit:  # down to 141/256 at the far end
        distance = np.arange(height) if lit == "above" else np.arange(height)[::-1]
        light = light * (256 - distance * 115 // height)[:, None] >> 8
    grain = draws.field((height, width, 3), -7, 7) + draws.field((height, width, 1), -5, 5)
    image = np.clip((image * light[..., None] >> 8) + grain, 0, 255)
    return Scene(image.astype(np.uint8), *label(draws, canvas, region, classes))


def fill(canvas: Canvas) -> None:
    """Place the things: rows and crowds lowest, then clusters, then single ones."""
    draws, setting = canvas.draws, canvas.setting
    loose = setting.loose
    if setting.row and draws.between(0, 1):
        canvas.row(
            draws.pick([kind for kind, each in enumerate(setting.things) if each.in_row]), draws.between(*setting.row)
        )
    if draws.between(0, 3) == 0:
        canvas.place(canvas.thing(draws.pick(loose), canvas.anywhere(), crowd=True))
    for row in draws.sample(draws.between(*setting.clusters), len(loose)):
        canvas.cluster(loose[row], draws.between(*setting.members))
    for _ in range(draws.between(*setting.singles)):
        canvas.single(draws.pick(loose))


def crumbs(canvas: Canvas) -> list[Piece]:
    """Specks that belong to the ground."""
    draws, setting = canvas.draws, canvas.setting
    if not setting.crumbs:
        return []
    return [
        canvas.piece(draws.pick(setting.loose), canvas.anywhere(), draws.between(5, 7), draws.between(190, 280))
        for _ in range(draws.between(*setting.crumbs))
    ]


def paint(image: Ints, pieces: list[Piece]) -> None:
    """Draw the pieces in order, each with a soft shadow, a light from the top left and a darker rim of one pixel."""
    for rows, columns, mask, base, _ in pieces:
        below = image[rows.start + 2 : rows.stop + 2, columns.start + 2 : columns.stop + 2]  # a view, cut at the border
        shadow = mask[: below.shape[0], : below.shape[1], None]
        np.copyto(below, below * 200 >> 8, where=shadow)
        y, x = np.ogrid[: mask.shape[0], : mask.shape[1]]
        slope = (mask.shape[0] + mask.shape[1] - 2 * (y + x)) * 28 // (mask.shape[0] + mask.shape[1])
        rim = mask & dilate(~np.pad(mask, 1))[1:-1, 1:-1]
        colour = base * (256 + slope[..., None]) >> 8
        np.copyto(image[rows, columns], np.where(rim[..., None], colour * 5 // 9, colour), where=mask[..., None])


def label(
    draws: Draws, canvas: Canvas, region: Ints, classes: list[StuffClass]
) -> tuple[NDArray[np.int32], list[dict[str, Any]]]:
    """Segment ids int32 H x W and segments_info. An id is a colour (R + 256 G + 65536 B) near its class's."""
    ids = np.zeros(region.shape, dtype=np.int32)
    labelled: dict[int, tuple[int, bool]] = {}

    def add(category: int, colour: Sequence[int], mask: NDArray[np.bool_], spread: int, crowd: bool) -> None:
        number = 0
        while number == 0 or number in labelled:
            shift = draws.field((3,), -spread, spread) if spread else 0
            red, green, blue = (int(c) for c in np.clip(np.array(colour) + shift, 1, 255))
            number = red + 256 * green + 65536 * blue
        ids[mask] = number
        labelled[number] = category, crowd

    for row, stuff in enumerate(classes):
        mask = (region == row) & (canvas.owner < 0)
        if mask.sum() >= LEAST_STUFF:
            add(stuff.id, stuff.colour, mask, 0, False)
    for i, thing in enumerate(canvas.things):
        kind = canvas.setting.things[thing.kind]
        add(kind.id, kind.colour, canvas.owner == i, 40, thing.crowd)
    found = areas_and_boxes(ids)
    return ids, [
        {"id": id, "category_id": category, "area": found[id][0], "bbox": list(found[id][1]), "iscrowd": int(crowd)}
        for id, (category, crowd) in labelled.items()
    ]
