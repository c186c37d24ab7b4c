"""What the scenes of a data set hold: its classes, and how many things lie how close. EASY is `shapes`, HARD its harder
sister."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

Beside = Literal["checks", "dots"]
Light = Literal["above", "below"]
Colour = tuple[int, int, int]


class ThingClass(NamedTuple):
    """radii: least and most, in half pixels. look: of which colours most are; two classes of one look and one shape
    differ in nothing but where they lie. in_row: several in a straight line, and never otherwise."""

    id: int
    name: str
    colour: Colour
    shape: str
    radii: tuple[int, int]
    look: int
    in_row: bool = False


class StuffClass(NamedTuple):
    """Classes of one pattern differ in nothing that the region itself shows: the pattern of exactly one neighbour is
    `beside`, or the picture is lit from `light`."""

    id: int
    name: str
    colour: Colour
    pattern: str
    look: int
    beside: Beside | None = None
    light: Light | None = None


@dataclass(frozen=True)
class Setting:
    """Pairs are the least and the most of a count. visible: tenths that stay visible of every thing that others cover.
    colours: how many of the palette's. odds: to one that a colour is typical of its class. upright: most triangles are.
    crumbs: unlabelled specks on the ground. row: a line of things, in half of the scenes. lights: where the light may
    come from, which falls off to the other end of the picture; none: it is even."""

    name: str
    version: int  # of the pixels: to be raised whenever a scene changes
    things: tuple[ThingClass, ...]
    stuff: tuple[StuffClass, ...]
    least_regions: int
    clusters: tuple[int, int]
    members: tuple[int, int]
    singles: tuple[int, int]
    visible: int
    colours: int = 8
    odds: int = 3
    upright: bool = True
    crumbs: tuple[int, int] | None = None
    row: tuple[int, int] | None = None
    lights: tuple[Light, ...] = ()

    @cached_property
    def patterns(self) -> list[str]:
        return list(dict.fromkeys(each.pattern for each in self.stuff))

    @cached_property
    def loose(self) -> list[int]:
        """Rows in `things` of the classes that lie anywhere."""
        return [row for row, each in enumerate(self.things) if not each.in_row]

    @cached_property
    def categories(self) -> list[dict[str, Any]]:
        """As in the JSON. A colour is the one that labels are painted with."""
        things = [(each.id, each.name, "shape", 1, each.colour) for each in self.things]
        stuff = [(each.id, each.name, "texture", 0, each.colour) for each in self.stuff]
        return [
            {"id": id, "name": name, "supercategory": over, "isthing": isthing, "color": list(colour)}
            for id, name, over, isthing, colour in things + stuff
        ]


# Category ids have gaps and things come first, as in COCO.
EASY = Setting(
    name="shapes",
    version=1,
    things=(
        ThingClass(1, "disk", (230, 74, 90), "disk", (14, 24), 0),
        ThingClass(2, "square", (52, 120, 235), "square", (17, 30), 1),
        ThingClass(4, "triangle", (46, 176, 92), "triangle", (19, 34), 2),
        ThingClass(7, "star", (245, 188, 46), "star", (21, 36), 3),
    ),
    stuff=(
        StuffClass(92, "stripes", (112, 86, 160), "stripes", 0),
        StuffClass(95, "checks", (150, 112, 84), "checks", 1),
        StuffClass(101, "dots", (84, 150, 156), "dots", 2),
        StuffClass(118, "clouds", (156, 166, 184), "clouds", 3),
    ),
    least_regions=2,
    clusters=(2, 3),
    members=(3, 4),
    singles=(1, 3),
    visible=6,
)

HARD = Setting(
    name="shapes_hard",
    version=1,
    things=(
        ThingClass(1, "disk", (230, 74, 90), "disk", (13, 39), 0),
        ThingClass(2, "square", (52, 120, 235), "square", (14, 42), 1),
        ThingClass(4, "triangle", (46, 176, 92), "triangle", (16, 48), 2),
        ThingClass(7, "star", (245, 188, 46), "star", (17, 51), 3),
        ThingClass(9, "ring", (214, 92, 196), "ring", (18, 54), 4),
        ThingClass(10, "arc", (72, 200, 210), "arc", (19, 57), 5),
        ThingClass(14, "bent stick", (140, 70, 220), "bent stick", (22, 66), 6),
        ThingClass(15, "bead", (246, 130, 60), "disk", (13, 21), 0, in_row=True),
    ),
    stuff=(
        StuffClass(92, "stripes", (112, 86, 160), "stripes", 0),
        StuffClass(95, "checks", (150, 112, 84), "checks", 1),
        StuffClass(101, "dots", (84, 150, 156), "dots", 2),
        StuffClass(118, "clouds", (156, 166, 184), "clouds", 3),
        StuffClass(122, "grit by checks", (190, 160, 120), "grit", 5, beside="checks"),
        StuffClass(125, "grit by dots", (120, 190, 186), "grit", 5, beside="dots"),
        StuffClass(128, "weave lit from above", (206, 206, 130), "weave", 6, light="above"),
        StuffClass(130, "weave lit from below", (96, 92, 120), "weave", 6, light="below"),
    ),
    least_regions=3,
    clusters=(2, 3),
    members=(2, 4),
    singles=(1, 3),
    visible=4,
    colours=16,
    odds=7,
    upright=False,
    crumbs=(3, 6),
    row=(4, 6),
    lights=("above", "below"),
)
