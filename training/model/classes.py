"""Which rows of the network's layers belong to a class, and how a network takes them from one of other classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class Counts(NamedTuple):
    """Of the categories: contiguous ones are the stuff, then the things. one_thing: to the semantic head all things are
    one class (`merge: heuristic`)."""

    stuff: int
    things: int
    one_thing: bool = False

    @property
    def semantic_things(self) -> int:
        return min(1, self.things) if self.one_thing else self.things


class ClassRows(NamedTuple):
    """The output rows of a layer: `each` of them for a class; those of the background, then of the stuff unless the
    layer is about `things` alone, then of the things. The semantic head has a background where there is no stuff."""

    each: int = 1
    things: bool = True

    def background(self, counts: Counts) -> int:
        return 1 if self.things or counts.stuff == 0 else 0

    def total(self, counts: Counts) -> int:
        classes = counts.things if self.things else counts.stuff + counts.semantic_things
        return self.each * (self.background(counts) + classes)

    def row(self, index: int, counts: Counts) -> int | None:
        """Of a contiguous class, in units of `each`; None where the layer has none for it."""
        first, last = (counts.stuff, sum(counts[:2])) if self.things else (0, counts.stuff + counts.semantic_things)
        if index < first:
            return None
        return self.background(counts) + min(index, last - 1) - first


CLASS_ROWS = {  # every layer of the network that has rows for each class
    "semantic_head.score": ClassRows(things=False),
    "box_head.logits": ClassRows(),
    "box_head.deltas": ClassRows(each=4),
    "mask_head.score": ClassRows(),
}
CLASS_TENSORS = {f"{layer}.{part}": rows for layer, rows in CLASS_ROWS.items() for part in ("weight", "bias")}
THING_HEADS = ("rpn", "box_head", "mask_head")  # modules that a network without things may lack


def take_classes(
    own: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    pairs: Mapping[int, int],
    own_counts: Counts,
    given_counts: Counts,
) -> dict[str, Tensor]:
    """The tensors of `given`, another network's, with the classes of `own`.

    pairs: contiguous class of `own` -> that of `given` whose rows it takes; the rows of other classes are as in `own`.
    A class that is a thing on one side alone takes its semantic row, since stuff has no others. The rows of the
    background, and of all things as one, go with the classes': taken where one of the layer is. The layers have the
    same inputs on both sides, and both or none know all things as one.
    """
    state = dict(given)
    for name, rows in CLASS_TENSORS.items():
        if name not in own or name not in given:
            continue
        target, source = own[name].unflatten(0, (-1, rows.each)).clone(), given[name].unflatten(0, (-1, rows.each))
        places = ((rows.row(i, own_counts), rows.row(j, given_counts)) for i, j in pairs.items())
        taken = {place: other for place, other in places if place is not None and other is not None}
        if taken and rows.background(own_counts) and rows.background(given_counts):
            taken[0] = 0
        if taken and not rows.things and own_counts.one_thing and own_counts.things and given_counts.things:
            taken[len(target) - 1] = len(source) - 1
        target[list(taken)] = source[list(taken.values())]
        state[name] = target.flatten(0, 1)
    return state
