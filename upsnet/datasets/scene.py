"""One synthetic panoptic scene: textured stuff regions, clusters of touching shapes, now and then a crowd.

A scene is a function of (seed, index, size list) alone and has the same pixels on every machine: every step is integer
arithmetic, and the only random source is PCG64's raw 64-bit stream, which numpy keeps stable (its distributions it does
not).
Colours are shared: every palette entry occurs on things and on stuff, so that colour alone does not tell them apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from upsnet.run_lengths import areas_and_boxes

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
T = TypeVar("T")

SIZES: tuple[tuple[int, int], ...] = ((96, 96), (96, 128), (128, 96), (112, 112))  # height, width

# Category ids have gaps and things come first, as in COCO; colours are the ones the label PNGs are painted with.
CATEGORIES: list[dict[str, Any]] = [
    {"id": 1, "name": "disk", "supercategory": "shape", "isthing": 1, "color": [230, 74, 90]},
    {"id": 2, "name": "square", "supercategory": "shape", "isthing": 1, "color": [52, 120, 235]},
    {"id": 4, "name": "triangle", "supercategory": "shape", "isthing": 1, "color": [46, 176, 92]},
    {"id": 7, "name": "star", "supercategory": "shape", "isthing": 1, "color": [245, 188, 46]},
    {"id": 92, "name": "stripes", "supercategory": "texture", "isthing": 0, "color": [112, 86, 160]},
    {"id": 95, "name": "checks", "supercategory": "texture", "isthing": 0, "color": [150, 112, 84]},
    {"id": 101, "name": "dots", "supercategory": "texture", "isthing": 0, "color": [84, 150, 156]},
    {"id": 118, "name": "clouds", "supercategory": "texture", "isthing": 0, "color": [156, 166, 184]},
]
THINGS = [c for c in CATEGORIES if c["isthing"]]
STUFF = [c for c in CATEGORIES if not c["isthing"]]

CORAL, ORANGE, BLUE, SKY = (226, 96, 84), (240, 160, 84), (74, 128, 196), (112, 170, 214)
GREEN, LIME, YELLOW, VIOLET = (92, 166, 110), (160, 190, 104), (236, 200, 96), (178, 116, 182)
PALETTE: Ints = np.array([CORAL, ORANGE, BLUE, SKY, GREEN, LIME, YELLOW, VIOLET])
GROUT = np.array([44, 42, 52])  # the void seams between stuff regions

UNIT = 1024  # fixed point: one radius of a shape
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
RADII = {"disk": (14, 24), "square": (17, 30), "triangle": (19, 34), "star": (21, 36)}  # least and most, half pixels
LEAST_STUFF = 40  # a visible stuff region of fewer pixels becomes void


class Scene(NamedTuple):
    """image uint8 H x W x 3; ids int32 H x W (24-bit segment ids, 0 void); segments: COCO segments_info dicts."""

    image: NDArray[np.uint8]
    ids: NDArray[np.int32]
    segments: list[dict[str, Any]]


class Piece(NamedTuple):
    """One shape on the canvas: rows and columns of its window, its mask there, and its colour."""

    rows: slice
    columns: slice
    mask: Bools
    colour: Ints
    whole: int  # pixels of the shape, those outside the canvas included


class Thing(NamedTuple):
    kind: int  # row in THINGS
    centre: tuple[int, int]
    reach: int  # radius in half pixels
    pieces: list[Piece]
    crowd: bool


class Draws:
    """Integer draws from one raw random stream."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(key))
        self._pool: list[int] = []  # drawn ahead, for speed

    def field(self, shape: tuple[int, ...], low: int, high: int) -> Ints:
        """Integers low..high, both included."""
        raw = np.asarray(self._bits.random_raw(math.prod(shape))) >> np.uint64(32)
        return low + (raw.astype(np.int64) * (high - low + 1) >> 32).reshape(shape)

    def between(self, low: int, high: int) -> int:
        if not self._pool:
            self._pool = self.field((256,), 0, (1 << 31) - 1).tolist()
        return low + (self._pool.pop() * (high - low + 1) >> 31)

    def pick(self, items: Sequence[T]) -> T:
        return items[self.between(0, len(items) - 1)]

    def sample(self, count: int, population: int) -> list[int]:
        """`count` different integers of 0..population-1."""
        return [int(i) for i in np.argsort(self.field((population,), 0, 1 << 30), kind="stable")[:count]]

    def turn(self) -> tuple[int, int]:
        """A direction: (cos, sin) * UNIT from a rational point of the circle, exact in integers."""
        p, q = self.between(0, 32), 32
        c, s = UNIT * (q * q - p * p) // (q * q + p * p), UNIT * 2 * p * q // (q * q + p * p)
        return self.pick(((c, s), (-s, c), (-c, -s), (s, -c)))


def smooth_noise(draws: Draws, height: int, width: int, cell: int) -> Ints:
    """Value noise 0..255: a random lattice every `cell` pixels, smoothstep between its points."""
    lattice = draws.field((height // cell + 2, width // cell + 2), 0, 255)
    (row, y), (column, x) = (np.divmod(np.arange(n), cell) for n in (height, width))
    y, x = (t * t * (3 * cell - 2 * t) // (cell * cell) for t in (y, x))
    x, y = x[None], y[:, None]
    upper, lower = ((lattice[r][:, column] * (cell - x) + lattice[r][:, column + 1] * x) for r in (row, row + 1))
    return (upper * (cell - y) + lower * y) // (cell * cell)


def stuff_regions(draws: Draws, height: int, width: int) -> tuple[Ints, list[int]]:
    """Row of `kinds` for every pixel (-1 on the seams) and the stuff class of every region: warped Voronoi cells."""
    y, x = np.ogrid[:height, :width]
    bend_y, bend_x = (smooth_noise(draws, height, width, 32) - 128 for _ in range(2))
    kinds = draws.sample(draws.between(2, 4 if height * width > 96 * 96 else 3), len(STUFF))
    while True:
        cy, cx = draws.field((len(kinds), 1, 1), 0, height - 1), draws.field((len(kinds), 1, 1), 0, width - 1)
        region = np.argmin((y + bend_y // 10 - cy) ** 2 + (x + bend_x // 10 - cx) ** 2, axis=0)
        if np.bincount(region.ravel(), minlength=len(kinds)).min() * 8 >= height * width:
            break
    seam = np.zeros((height, width), dtype=bool)
    seam[:-1] |= region[1:] != region[:-1]
    seam[:, :-1] |= region[:, 1:] != region[:, :-1]
    return np.where(seam, -1, region), kinds


def texture(draws: Draws, kind: int, height: int, width: int) -> Ints:
    """Colours H x W x 3 of one stuff class: two tones of one palette entry in the class's pattern."""
    typical = (2 * kind + 3) % len(PALETTE), (2 * kind + 4) % len(PALETTE)
    base = PALETTE[draws.pick(typical) if draws.between(0, 3) else draws.between(0, len(PALETTE) - 1)]
    light, dark = base * draws.between(236, 276) >> 8, base * draws.between(150, 180) >> 8
    c, s = draws.turn()
    y, x = np.ogrid[:height, :width]
    u, v = x * c + y * s + draws.between(0, 16 * UNIT), y * c - x * s + draws.between(0, 16 * UNIT)
    name = STUFF[kind]["name"]
    if name == "stripes":
        blend = (u // (draws.between(5, 8) * UNIT // 2) & 1) * 256
    elif name == "checks":
        step = draws.between(4, 6) * UNIT
        blend = ((u // step ^ v // step) & 1) * 256
    elif name == "dots":
        step = draws.between(6, 9) * UNIT
        v = v + (u // step & 1) * (step // 2)  # every second row is shifted
        blend = ((u % step - step // 2) ** 2 + (v % step - step // 2) ** 2 < (step * 5 // 16) ** 2) * 256
    else:
        blend = (2 * smooth_noise(draws, height, width, 16) + smooth_noise(draws, height, width, 7)) // 3
        blend = np.clip((blend - 128) * 2 + 128, 0, 256)
    return (light * (256 - blend[..., None]) + dark * blend[..., None]) >> 8


def shape_mask(name: str, u: Ints, v: Ints) -> Bools:
    """Pixels of the unit shape at fixed-point coordinates u (right) and v (down): half-plane tests only."""
    if name == "disk":
        return u * u + v * v <= UNIT * UNIT
    corners = POLYGONS[name]
    inside = np.zeros(u.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):  # triangles (centre, a, b)
        between = (ax * v - ay * u >= 0) & (u * by - v * bx >= 0)
        inside |= between & ((bx - ax) * (v - ay) - (by - ay) * (u - ax) >= 0)
    return inside


def make_piece(
    draws: Draws, kind: int, centre: tuple[int, int], reach: int, shade: int, canvas: tuple[int, int]
) -> Piece:
    """Rasterise a turned, slightly squeezed shape of radius reach / 2 pixels around `centre` (row, column)."""
    c, s = draws.turn()
    if THINGS[kind]["name"] == "triangle" and draws.between(0, 3):
        c, s = UNIT, 0  # most triangles stand upright
    squeeze = draws.between(860, UNIT)
    half = reach // 2 + 1
    dy, dx = np.ogrid[-half : half + 1, -half : half + 1]
    u, v = (dx * c + dy * s) * 2 // reach, (dy * c - dx * s) * 2 * UNIT // (reach * squeeze)
    mask = shape_mask(THINGS[kind]["name"], u, v)
    top, left = centre[0] - half, centre[1] - half
    bottom, right = min(top + len(mask), canvas[0]), min(left + len(mask), canvas[1])
    typical = 2 * kind, 2 * kind + 1
    base = PALETTE[draws.pick(typical) if draws.between(0, 3) else draws.between(0, len(PALETTE) - 1)]
    seen = mask[max(-top, 0) : bottom - top, max(-left, 0) : right - left]
    return Piece(slice(max(top, 0), bottom), slice(max(left, 0), right), seen, base * shade >> 8, int(mask.sum()))


class Canvas:
    """Places things one over another and keeps every one of them well visible."""

    def __init__(self, draws: Draws, height: int, width: int) -> None:
        self.draws, self.height, self.width = draws, height, width
        self.things: list[Thing] = []
        self.owner: Ints = np.full((height, width), -1)

    def thing(self, kind: int, centre: tuple[int, int], crowd: bool = False) -> Thing:
        draws, size = self.draws, (self.height, self.width)
        shade = (196, 222, 248, 274)[len(self.things) % 4] + draws.between(-8, 8)
        if not crowd:
            reach = draws.between(*RADII[THINGS[kind]["name"]])
            return Thing(kind, centre, reach, [make_piece(draws, kind, centre, reach, shade, size)], False)
        spread = [(centre[0] + int(y), centre[1] + int(x)) for y, x in draws.field((draws.between(16, 24), 2), -15, 15)]
        inside = [p for p in spread if 4 <= p[0] < self.height - 4 and 4 <= p[1] < self.width - 4]
        shades = draws.field((len(inside),), shade - 40, shade + 30)
        around = zip(inside, shades, strict=True)
        pieces = [make_piece(draws, kind, p, draws.between(9, 11), int(s), size) for p, s in around]
        return Thing(kind, centre, 30, pieces, True)

    def place(self, thing: Thing, touching: list[int] | None = None, apart: bool = False) -> bool:
        """Put `thing` on top unless it leaves the canvas, hides another too much, does not touch one of the things
        `touching` along at least three pixels, or (apart) touches anything of its own class. True when it is there."""
        footprint = np.zeros((self.height, self.width), dtype=bool)
        for piece in thing.pieces:
            footprint[piece.rows, piece.columns] |= piece.mask
        if not thing.crowd and footprint.sum() * 10 < thing.pieces[0].whole * 8:
            return False
        neighbours = self.owner[dilate(footprint)]
        if touching is not None and np.isin(neighbours, touching).sum() < 3:
            return False
        if apart and any(self.things[i].kind == thing.kind for i in np.unique(neighbours) if i >= 0):
            return False
        owner = np.where(footprint, len(self.things), self.owner)
        visible = np.bincount(owner.ravel() + 1, minlength=len(self.things) + 2)[1:]
        for thing_visible, below in zip(visible, self.things, strict=False):
            if thing_visible * 10 < sum(p.whole for p in below.pieces) * (4 if below.crowd else 6):
                return False
        self.owner = owner
        self.things.append(thing)
        return True

    def anywhere(self) -> tuple[int, int]:
        return self.draws.between(6, self.height - 7), self.draws.between(6, self.width - 7)

    def cluster(self, kind: int, count: int) -> None:
        """`count` things of one class, each touching one before it."""
        members: list[int] = []
        for _ in range(40 * count):
            if len(members) == count:
                return
            if not members:
                placed = self.place(self.thing(kind, self.anywhere()))
            else:
                parent, (c, s) = self.things[self.draws.pick(members)], self.draws.turn()
                reach = (parent.reach + RADII[THINGS[kind]["name"]][1]) * self.draws.between(6, 14) // 32
                centre = parent.centre[0] + s * reach // UNIT, parent.centre[1] + c * reach // UNIT
                inside = 0 <= centre[0] < self.height and 0 <= centre[1] < self.width
                placed = inside and self.place(self.thing(kind, centre), touching=members)
            if placed:
                members.append(len(self.things) - 1)

    def single(self, kind: int) -> None:
        """One thing apart from all others of its class, if twenty tries find room."""
        for _ in range(20):
            if self.place(self.thing(kind, self.anywhere()), apart=True):
                return


def dilate(mask: Bools) -> Bools:
    """The mask and its 4-neighbours."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown


def paint(draws: Draws, image: Ints, things: list[Thing]) -> None:
    """Draw the things in order, each with a soft shadow, a light from the top left and a darker rim of one pixel."""
    for piece in (p for thing in things for p in thing.pieces):
        rows, columns, mask = piece.rows, piece.columns, piece.mask
        below = image[rows.start + 2 : rows.stop + 2, columns.start + 2 : columns.stop + 2]  # a view, cut at the border
        shadow = mask[: below.shape[0], : below.shape[1], None]
        np.copyto(below, below * 200 >> 8, where=shadow)
        y, x = np.ogrid[: mask.shape[0], : mask.shape[1]]
        slope = (mask.shape[0] + mask.shape[1] - 2 * (y + x)) * 28 // (mask.shape[0] + mask.shape[1])
        rim = mask & dilate(~np.pad(mask, 1))[1:-1, 1:-1]
        colour = piece.colour * (256 + slope[..., None]) >> 8
        np.copyto(image[rows, columns], np.where(rim[..., None], colour * 5 // 9, colour), where=mask[..., None])


def draw_scene(seed: int, index: int, sizes: Sequence[tuple[int, int]] = SIZES) -> Scene:
    """The scene number `index` of data set `seed`; sizes: the (height, width) to draw from, each side at least 64."""
    draws = Draws(seed, index)
    height, width = draws.pick(sizes)
    region, kinds = stuff_regions(draws, height, width)
    image = np.broadcast_to(GROUT, (height, width, 3)).astype(np.int64)
    for row, kind in enumerate(kinds):
        image = np.where((region == row)[..., None], texture(draws, kind, height, width), image)

    canvas = Canvas(draws, height, width)
    if draws.between(0, 3) == 0:
        canvas.place(canvas.thing(draws.between(0, len(THINGS) - 1), canvas.anywhere(), crowd=True))
    for kind in draws.sample(draws.between(2, 3), len(THINGS)):
        canvas.cluster(kind, draws.between(3, 4))
    for _ in range(draws.between(1, 3)):
        canvas.single(draws.between(0, len(THINGS) - 1))
    paint(draws, image, canvas.things)

    light = 226 + smooth_noise(draws, height, width, 48) * 44 // 255
    grain = draws.field((height, width, 3), -7, 7) + draws.field((height, width, 1), -5, 5)
    image = np.clip((image * light[..., None] >> 8) + grain, 0, 255)
    return Scene(image.astype(np.uint8), *label(draws, canvas, region, kinds))


def label(
    draws: Draws, canvas: Canvas, region: Ints, kinds: list[int]
) -> tuple[NDArray[np.int32], list[dict[str, Any]]]:
    """Segment ids int32 H x W and segments_info. An id is a colour (R + 256 G + 65536 B) near its class's."""
    masks = [(STUFF[kind], (region == row) & (canvas.owner < 0), False) for row, kind in enumerate(kinds)]
    masks = [entry for entry in masks if entry[1].sum() >= LEAST_STUFF]
    masks += [(THINGS[t.kind], canvas.owner == i, t.crowd) for i, t in enumerate(canvas.things)]
    ids = np.zeros(region.shape, dtype=np.int32)
    labelled: dict[int, tuple[int, bool]] = {}
    for category, mask, crowd in masks:
        number = 0
        while number == 0 or number in labelled:
            shift = draws.field((3,), -40, 40) if category["isthing"] else 0
            red, green, blue = (int(c) for c in np.clip(np.array(category["color"]) + shift, 1, 255))
            number = red + 256 * green + 65536 * blue
        ids[mask] = number
        labelled[number] = category["id"], crowd
    found = areas_and_boxes(ids)
    return ids, [
        {"id": id, "category_id": category, "area": found[id][0], "bbox": list(found[id][1]), "iscrowd": int(crowd)}
        for id, (category, crowd) in labelled.items()
    ]
