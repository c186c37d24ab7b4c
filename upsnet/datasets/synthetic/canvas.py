"""Where the things of a scene lie: one over another, and every one of them well visible."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from upsnet.datasets.synthetic.draws import UNIT, Bools, Draws, Ints
from upsnet.datasets.synthetic.settings import Setting
from upsnet.datasets.synthetic.things import Piece, make_piece


class Thing(NamedTuple):
    kind: int  # row in the setting's things
    centre: tuple[int, int]
    reach: int  # radius in half pixels
    pieces: list[Piece]
    crowd: bool


class Canvas:
    """Places things one over another and keeps every one of them well visible."""

    def __init__(self, draws: Draws, setting: Setting, height: int, width: int) -> None:
        self.draws, self.setting, self.height, self.width = draws, setting, height, width
        self.things: list[Thing] = []
        self.owner: Ints = np.full((height, width), -1)

    def piece(self, kind: int, centre: tuple[int, int], reach: int, shade: int) -> Piece:
        return make_piece(self.draws, self.setting, kind, centre, reach, shade, (self.height, self.width))

    def thing(self, kind: int, centre: tuple[int, int], crowd: bool = False, reach: int | None = None) -> Thing:
        draws = self.draws
        shade = (196, 222, 248, 274)[len(self.things) % 4] + draws.between(-8, 8)
        if not crowd:
            reach = reach or draws.between(*self.setting.things[kind].radii)
            return Thing(kind, centre, reach, [self.piece(kind, centre, reach, shade)], False)
        spread = [(centre[0] + int(y), centre[1] + int(x)) for y, x in draws.field((draws.between(16, 24), 2), -15, 15)]
        inside = [p for p in spread if 4 <= p[0] < self.height - 4 and 4 <= p[1] < self.width - 4]
        shades = draws.field((len(inside),), shade - 40, shade + 30)
        around = zip(inside, shades, strict=True)
        pieces = [self.piece(kind, p, draws.between(9, 11), int(s)) for p, s in around]
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
            if thing_visible * 10 < sum(p.whole for p in below.pieces) * (4 if below.crowd else self.setting.visible):
                return False
        self.owner = owner
        self.things.append(thing)
        return True

    def anywhere(self) -> tuple[int, int]:
        return self.draws.between(6, self.height - 7), self.draws.between(6, self.width - 7)

    def within(self, centre: tuple[int, int]) -> bool:
        return 0 <= centre[0] < self.height and 0 <= centre[1] < self.width

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
                reach = (parent.reach + self.setting.things[kind].radii[1]) * self.draws.between(6, 14) // 32
                centre = parent.centre[0] + s * reach // UNIT, parent.centre[1] + c * reach // UNIT
                placed = self.within(centre) and self.place(self.thing(kind, centre), touching=members)
            if placed:
                members.append(len(self.things) - 1)

    def single(self, kind: int) -> None:
        """One thing apart from all others of its class, if twenty tries find room."""
        for _ in range(20):
            if self.place(self.thing(kind, self.anywhere()), apart=True):
                return

    def row(self, kind: int, count: int) -> None:
        """`count` things of one size in a straight line, one diameter apart; for an empty canvas. None where a thousand
        tries find no room: a small canvas has none for a long row."""
        reach = self.draws.between(*self.setting.things[kind].radii)
        for _ in range(1000):
            (y, x), (c, s) = self.anywhere(), self.draws.turn()
            line = [(y + s * reach * i // UNIT, x + c * reach * i // UNIT) for i in range(count)]
            if self.within(line[-1]):
                for centre in line:
                    self.place(self.thing(kind, centre, reach=reach))
                return


def dilate(mask: Bools) -> Bools:
    """The mask and its 4-neighbours."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown
