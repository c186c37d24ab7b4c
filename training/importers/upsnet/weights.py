"""Weights of the original UPSNet and of its hybrid fork -> a state_dict of ours, with a report of every key."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor

from training.config import Config
from training.importers.upsnet.keys import FIRST_CONV, original_names
from training.model.classes import Counts, take_classes
from training.model.upsnet import UPSNet
from upsnet.categories import Categories
from upsnet.errors import InputError

# What torch.load raises for a file that is not a plain archive of tensors.
UNREADABLE = (
    *(OSError, RuntimeError, EOFError, AttributeError, LookupError, TypeError, ValueError),
    pickle.UnpicklingError,
)
PREFIX = "module."  # of a network that DataParallel wrapped
COUNTER = "num_batches_tracked"  # of no use at test time; many checkpoints lack it

# Cityscapes' classes -> the COCO network's detection classes (1 .. 80) and semantic channels (0 .. 132)
COCO_THINGS = {"person": 1, "car": 3, "truck": 8, "bus": 6, "train": 7, "motorcycle": 4, "bicycle": 2}
COCO_CHANNELS = {
    **{"road": 20, "sidewalk": 43, "building": 49, "wall": 51, "fence": 37},
    **{"traffic light": 62, "vegetation": 36, "sky": 39},
    **{name: 52 + label for name, label in COCO_THINGS.items()},
}
COCO_COUNTS = Counts(stuff=53, things=80)


def read_original(path: Path) -> dict[str, Tensor]:
    """A state_dict as torch.save wrote it, without DataParallel's prefix. Nothing but tensors is unpickled.

    InputError: no such file, not a file of tensors.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such checkpoint") from None
    except UNREADABLE:
        raise InputError(
            f"{path}: not a file of weights that torch.load reads with weights_only=True; a checkpoint of this project "
            "needs no import"
        ) from None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise InputError(f"{path}: not a plain state_dict; save the network's state_dict() alone")
    if weights and all(key.startswith(PREFIX) for key in weights):
        weights = {key.removeprefix(PREFIX): value for key, value in weights.items()}
    return weights


def build(
    settings: Config,
    weights: dict[str, Tensor],
    table: Categories | None,
    source: Path,
    partial: bool = False,
    cityscapes: bool = False,
) -> tuple[UPSNet, list[str]]:
    """The network with the original's weights, in eval mode, and lines for the user.

    `cityscapes`: the network of `table`, made of a COCO network's weights. Without a table the weights' own classes.
    InputError names every missing, unexpected and mis-shaped key, unless `partial`.
    """

    def fresh(num_stuff: int, num_things: int) -> UPSNet:
        torch.manual_seed(settings.seed)
        return UPSNet(settings.model, num_stuff, num_things)

    found = class_counts(weights, source)
    expected = COCO_COUNTS if cityscapes else (table.num_stuff, table.num_things) if table else found
    if found != expected:
        raise InputError(
            f"{source}: has {found[0]} stuff and {found[1]} thing classes, expected {expected[0]} and {expected[1]}; "
            "give the categories that it was trained with; `upsnet train --init` then takes it to others, by name"
        )
    model = fresh(*found)
    state, lines = to_ours(model, weights)
    if lines and not partial:
        raise InputError(
            f"{source}: {len(lines)} keys do not fit the configured network: {'; '.join(lines)}; "
            "change the configuration, or go on with --partial"
        )
    if cityscapes and table:
        model = fresh(table.num_stuff, table.num_things)
        state, more = to_cityscapes(model.state_dict(), state, table)
        lines += more
    model.load_state_dict(state)
    return model.eval(), lines


def class_counts(weights: dict[str, Tensor], path: Path) -> tuple[int, int]:
    """Stuff and thing classes of an original's weights. InputError: they are not those of a UPSNet."""
    scores = [weights.get(key) for key in ("fcn_head.score.weight", "rcnn.cls_score.weight")]
    if scores[0] is None or scores[1] is None:
        raise InputError(f"{path}: no UPSNet: lacks fcn_head.score.weight or rcnn.cls_score.weight")
    things = len(scores[1]) - 1
    stuff = len(scores[0]) - things
    if stuff < 1 or things < 1:
        raise InputError(
            f"{path}: no UPSNet, which has stuff and things: fcn_head.score.weight and rcnn.cls_score.weight make "
            f"{stuff} and {things} classes of them"
        )
    return stuff, things


def to_ours(model: UPSNet, weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The original's tensors under our names; where one is missing or mis-shaped, `model`'s own.

    With a line for every missing, unexpected and mis-shaped key.
    """
    state, problems = model.state_dict(), []
    names = original_names(model)
    for key, own in state.items():
        name = names[key]
        given = weights.get(name)
        if given is None:
            if not name.endswith(COUNTER):
                problems.append(f"missing {name} {list(own.shape)}")
        elif given.shape != own.shape:
            problems.append(f"{name} is {list(given.shape)} instead of {list(own.shape)}")
        else:
            # Input channels of the first convolution: BGR there, RGB here.
            state[key] = given.flip(1) if name == FIRST_CONV else given
    known = set(names.values())
    problems += [f"unexpected {name} {list(tensor.shape)}" for name, tensor in weights.items() if name not in known]
    return state, problems


def to_cityscapes(
    fresh: dict[str, Tensor], coco: dict[str, Tensor], categories: Categories
) -> tuple[dict[str, Tensor], list[str]]:
    """The state_dict of a Cityscapes network from a COCO network's, and lines that say which class came from where.

    A class that COCO does not have keeps its weights in `fresh`, a new Cityscapes network. InputError: the categories
    are not those of Cityscapes.
    """
    names = categories.names
    unknown = [name for name in COCO_CHANNELS if name not in names]
    if unknown:
        raise InputError(f"--to-cityscapes: the categories lack {', '.join(unknown)}; give those of Cityscapes")
    things = names[categories.num_stuff :]
    labels = {name: channel - 52 for name, channel in COCO_CHANNELS.items() if name in things and channel > 52}
    pairs = {names.index(name): channel for name, channel in COCO_CHANNELS.items()}
    state = take_classes(fresh, coco, pairs, Counts(categories.num_stuff, categories.num_things), COCO_COUNTS)

    def origins(table: dict[str, int], present: list[str]) -> str:
        rows = ", ".join(f"{name} <- {index}" for name, index in table.items())
        return f"{rows}; random: {', '.join(name for name in present if name not in table) or 'none'}"

    return state, [
        f"boxes and masks: background <- 0, {origins(labels, things)}",
        f"semantic channels: {origins(COCO_CHANNELS, names)}",
    ]
