"""Other people's weights -> a network of ours, whichever family they are of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from training.config import Config
from training.importers.family import Family, Weights, fit
from training.importers.panoptic_fpn.weights import PANOPTIC_FPN
from training.importers.upsnet.weights import COCO_COUNTS, UPSNET, to_cityscapes
from training.model.classes import Counts, take_classes
from training.model.upsnet import UPSNet
from upsnet.categories import Categories, Category
from upsnet.datasets import coco_categories
from upsnet.errors import InputError

FAMILIES = (UPSNET, PANOPTIC_FPN)


def family_of(weights: Weights, source: Path) -> Family:
    """By the names of the tensors. InputError: they are of no family that is known here."""
    for family in FAMILIES:
        if any(name.startswith(family.beginnings) for name in weights):
            return family
    known = " and ".join(family.name for family in FAMILIES)
    first = next(iter(weights), "")
    raise InputError(
        f"{source}: no weights of {known}: "
        + (f"its first tensor is {first[:100]}" if weights else "it has no tensors")
    )


def table_of(family: Family, weights: Weights, source: Path) -> Categories:
    """COCO's categories for a network of as many classes. InputError: it has others."""
    counts = family.class_counts(weights, source)
    if counts != COCO_COUNTS[:2]:
        family.check_classes(weights, source)
        raise InputError(
            f"{source}: has {counts[0]} stuff and {counts[1]} thing classes, so it is not COCO's network: give "
            "--categories, the COCO panoptic JSON that it was trained for, or the list of its categories"
        )
    return coco_categories()


def build(
    settings: Config,
    family: Family,
    weights: Weights,
    table: Categories | None,
    source: Path,
    partial: bool = False,
    cityscapes: bool = False,
    listed: Sequence[Category] = (),
) -> tuple[UPSNet, list[str]]:
    """The network with the weights, in eval mode, and lines for the user.

    `cityscapes`: the network of `table`, made of a COCO network's weights. Without a table the weights' own classes.
    listed: the categories in the order in which the weights have them, stuff and things each; () for that of `table`.
    InputError names every missing, unexpected and mis-shaped key, unless `partial`.
    """

    def fresh(num_stuff: int, num_things: int) -> UPSNet:
        torch.manual_seed(settings.seed)
        return UPSNet(settings.model, num_stuff, num_things)

    if cityscapes and family is not UPSNET:
        raise InputError(
            f"{source}: --to-cityscapes is for UPSNet's weights; import these with COCO's categories, and "
            "`upsnet train --init` takes them to others, by name"
        )
    found = family.class_counts(weights, source)
    expected = COCO_COUNTS[:2] if cityscapes else (table.num_stuff, table.num_things) if table else found
    if found != expected:
        family.check_classes(weights, source)
        raise InputError(
            f"{source}: has {found[0]} stuff and {found[1]} thing classes, expected {expected[0]} and {expected[1]}; "
            "give the categories that it was trained with; `upsnet train --init` then takes it to others, by name"
        )
    weights, lines = family.prepare(weights, settings, source)
    model = fresh(*found)
    state, problems = fit(model.state_dict(), family.sources(model), weights)
    if problems and not partial:
        raise InputError(
            f"{source}: {len(problems)} keys do not fit the configured network: {'; '.join(problems)}; "
            "change the configuration, or go on with --partial"
        )
    lines += problems
    if cityscapes and table:
        model = fresh(table.num_stuff, table.num_things)
        state, more = to_cityscapes(model.state_dict(), state, table)
        lines += more
    if listed and table:
        state = in_order_of(table, state, listed, model.heuristic)
    model.load_state_dict(state)
    return model.eval(), lines


def in_order_of(table: Categories, state: Weights, listed: Sequence[Category], one_thing: bool) -> Weights:
    """A state_dict whose rows of classes are in the order of `listed`, in that of `table`."""
    places = sorted(listed, key=lambda category: category.isthing)
    pairs = {table.index_of_id(category.id): place for place, category in enumerate(places)}
    counts = Counts(table.num_stuff, table.num_things, one_thing)
    return take_classes(state, state, pairs, counts, counts)
