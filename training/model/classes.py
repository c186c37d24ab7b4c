"""Which rows of the network's layers belong to a class, and how a network takes them from one of other classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class ClassRows(NamedTuple):
    """How the output rows of a layer are laid out: `each` rows for a class. `things`: the background's come first, then
    those of the things; else those of the stuff, then of the things."""

    each: int = 1
    things: bool = True

    def total(self, num_stuff: int, num_things: int) -> int:
        return self.each * ((1 if self.things else num_stuff) + num_things)


CLASS_ROWS = {  # every layer of the network that has rows for each class
    "semantic_head.score": ClassRows(things=False),
    "box_head.logits": ClassRows(),
    "box_head.deltas": ClassRows(each=4),
    "mask_head.score": ClassRows(),
}
CLASS_TENSORS = {f"{layer}.{part}": rows for layer, rows in CLASS_ROWS.items() for part in ("weight", "bias")}


def take_classes(
    own: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    pairs: Mapping[int, int],
    own_stuff: int,
    given_stuff: int,
) -> dict[str, Tensor]:
    """The tensors of `given`, another network's, with the classes of `own`.

    pairs: contiguous class of `own` -> that of `given` whose rows it takes; the rows of other classes are as in `own`.
    A class that is a thing on one side alone takes its semantic row, since stuff has no others. The background's rows
    go with the things': taken where one thing is. The layers have the same inputs on both sides.
    """
    things = {
        1 + mine - own_stuff: 1 + theirs - given_stuff
        for mine, theirs in pairs.items()
        if mine >= own_stuff and theirs >= given_stuff
    }
    if things:
        things[0] = 0
    state = dict(given)
    for name, rows in CLASS_TENSORS.items():
        if name in own and name in given:
            taken = things if rows.things else pairs
            target = own[name].unflatten(0, (-1, rows.each)).clone()
            target[list(taken)] = given[name].unflatten(0, (-1, rows.each))[list(taken.values())]
            state[name] = target.flatten(0, 1)
    return state
