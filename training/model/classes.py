"""Which rows of the network's layers belong to a class, and how a network takes them from one of other classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class Counts(NamedTuple):
    """Of the categories: contiguous ones are the stuff, then the things."""

    stuff: int
    things: int


class ClassRows(NamedTuple):
    """The output rows of a layer: `each` of them for a class; those of the background, then of the stuff unless the
    layer is about `things` alone, then of the things. The semantic head has a background where there is no stuff."""

    each: int = 1
    things: bool = True

    def total(self, counts: Counts) -> int:
        return self.each * ((1 if self.things else max(1, counts.stuff)) + counts.things)


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
    A class that is a thing on one side alone takes its semantic row, since stuff has no others. The background's rows
    go with the classes': taken where one of the layer is. The layers have the same inputs on both sides.
    """
    state = dict(given)
    for name, rows in CLASS_TENSORS.items():
        if name not in own or name not in given:
            continue
        target, source = own[name].unflatten(0, (-1, rows.each)).clone(), given[name].unflatten(0, (-1, rows.each))
        first, other = (own_counts.stuff, given_counts.stuff) if rows.things else (0, 0)  # class of the layer
        start, other_start = len(target) - sum(own_counts) + first, len(source) - sum(given_counts) + other
        taken = {start + i - first: other_start + j - other for i, j in pairs.items() if i >= first and j >= other}
        if taken and start == other_start:
            taken |= {row: row for row in range(start)}
        target[list(taken)] = source[list(taken.values())]
        state[name] = target.flatten(0, 1)
    return state
