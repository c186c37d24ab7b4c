"""Groups of images -> sides, so that every class has its share on each: iterative stratification.

Sechidis, Tsoumakas, Vlahavas, On the Stratification of Multi-Label Data, ECML PKDD 2011: the class with the fewest
groups left is dealt out first, each group to the side that lacks that class most. Here no side gets more images than
its share while another has room, and what then has a class on too few sides is exchanged.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TRIED, EXCHANGED = 20, 200  # groups with a class that a side lacks, and groups that may go back for one
SLACK = 0.05  # of a side's images: what the coverage of classes may cost


@dataclass
class Deal:
    """Which side has what. counts: images of each group that hold each class (G x C); sizes: images of each group."""

    counts: np.ndarray
    sizes: np.ndarray
    targets: np.ndarray  # images of each side
    sides: np.ndarray  # of each group; -1: none yet

    def __post_init__(self) -> None:
        self.has = self.counts > 0
        self.held = np.zeros((len(self.targets), self.counts.shape[1]), np.int64)  # groups with each class
        self.room = self.targets.astype(np.int64)  # images that each side still takes
        self.wanted = np.outer(self.targets / self.sizes.sum(), self.counts.sum(axis=0))  # images of each class
        self.reachable = np.minimum(self.has.sum(axis=0), len(self.targets))  # sides that can hold each class

    def move(self, group: int, side: int) -> None:
        for where, sign in ((self.sides[group], -1), (side, 1)):
            if where >= 0:
                self.held[where] += sign * self.has[group]
                self.room[where] -= sign * self.sizes[group]
                self.wanted[where] -= sign * self.counts[group]
        self.sides[group] = side

    def missing(self, held: np.ndarray) -> np.ndarray:
        """int C: the sides without a class that could have it; twice where it is the first, which is trained on."""
        return self.reachable - (held > 0).sum(axis=0) + ((held[0] == 0) & (self.reachable > 0))


def stratify(counts: np.ndarray, sizes: np.ndarray, targets: Sequence[int], seed: int = 0) -> np.ndarray:
    """counts int G x C, sizes int G, targets: images of each side, at least one, training's first -> the side of each
    group, int G. The order of the groups and the seed decide between equals."""
    deal = Deal(counts, sizes, np.array(targets), np.full(len(sizes), -1))
    order = list(range(len(sizes)))
    random.Random(seed).shuffle(order)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    open_groups = deal.has.sum(axis=0)
    while open_groups.any():
        label = int(np.argmin(np.where(open_groups > 0, open_groups, len(sizes) + 1)))
        members = np.flatnonzero((deal.sides < 0) & deal.has[:, label])
        for group in members[np.lexsort((place[members], -counts[members, label]))].tolist():
            deal.move(group, _side(deal, group, label, int(open_groups[label])))
            open_groups -= deal.has[group]
    rest = np.flatnonzero(deal.sides < 0)
    for group in rest[np.lexsort((place[rest], -sizes[rest]))].tolist():
        deal.move(group, int(np.argmax(deal.room)))
    _fill(deal, place)
    _cover(deal, place)
    return deal.sides


def _side(deal: Deal, group: int, label: int, left: int) -> int:
    """left: groups with this class that are not dealt out yet, this one among them."""
    size = deal.sizes[group]
    sides = np.flatnonzero(deal.room >= (size if size <= deal.room.max() else size / 2))
    if not len(sides):
        return int(np.argmax(deal.room))
    lacking = sides[deal.held[sides, label] == 0]
    if len(lacking) and (deal.held[:, label] == 0).sum() >= left:  # each of these groups is needed on a side
        return int(lacking[0])
    return int(sides[np.lexsort((-deal.room[sides], -deal.wanted[sides, label]))[0]])


def _fill(deal: Deal, place: np.ndarray) -> None:
    """A side without any group gets the smallest one of the side with the most groups."""
    for side in range(len(deal.targets)):
        if not (deal.sides == side).any():
            fullest = int(np.argmax(np.bincount(deal.sides, minlength=len(deal.targets))))
            members = np.flatnonzero(deal.sides == fullest)
            deal.move(int(members[np.lexsort((place[members], deal.sizes[members]))[0]]), side)


def _cover(deal: Deal, place: np.ndarray) -> None:
    """Moves and exchanges groups as long as more classes come to more sides, and sides keep their sizes."""
    slack = np.floor(SLACK * deal.targets)
    improved = True
    while improved:
        improved = False
        for label in np.flatnonzero(deal.missing(deal.held)).tolist():
            for side in np.flatnonzero(deal.held[:, label] == 0).tolist():
                improved = _bring(deal, label, side, place, slack) or improved


def _bring(deal: Deal, label: int, side: int, place: np.ndarray, slack: np.ndarray) -> bool:
    """A class comes to a side that lacks it, alone or for a group of the side's own. Whether that was a gain."""
    before = int(deal.missing(deal.held).sum())
    members = np.flatnonzero(deal.has[:, label])
    best: tuple[int, int, int] | None = None  # what is missing then, the group, the one that goes back or -1
    for group in members[np.argsort(place[members])][:TRIED].tolist():
        home = int(deal.sides[group])
        theirs = np.flatnonzero(deal.sides == side)
        theirs = theirs[np.lexsort((place[theirs], abs(deal.sizes[theirs] - deal.sizes[group])))][:EXCHANGED]
        for back in (-1, *theirs.tolist()):
            gone = int(deal.sizes[group] - (deal.sizes[back] if back >= 0 else 0))
            room = deal.room.copy()
            room[home] += gone
            room[side] -= gone
            if (abs(room) > np.maximum(slack, abs(deal.room) if back >= 0 else 0)).any():
                continue
            held = deal.held.copy()
            change = deal.has[group].astype(np.int64) - (deal.has[back] if back >= 0 else 0)
            held[home] -= change
            held[side] += change
            missing = int(deal.missing(held).sum())
            if missing < (best[0] if best else before):
                best = missing, group, back
    if best is None:
        return False
    home = int(deal.sides[best[1]])
    deal.move(best[1], side)
    if best[2] >= 0:
        deal.move(best[2], home)
    return True
