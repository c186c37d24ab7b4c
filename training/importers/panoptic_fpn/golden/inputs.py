"""What the arrays of one photo start from: the photo itself, and stages that another run computed."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from training.importers.arrays import Arrays, read_arrays
from upsnet.errors import InputError
from upsnet.geometry import NetworkBatch, NetworkImage, ResizeRule, collate, to_network
from upsnet.photos import read_photo

TOGETHER = (("cand_index", "cand_prob", "cand_delta"), ("det_boxes", "det_scores", "det_classes"))


class Inputs(NamedTuple):
    """One photo, and the arrays of another run that stages start from."""

    image: NetworkImage
    given: Arrays

    @property
    def batch(self) -> NetworkBatch:
        return collate([self.image])

    @property
    def sizes(self) -> Tensor:
        return torch.tensor([self.image.size], dtype=torch.int32)

    def stage(self, name: str, own: Tensor, rows: int | None = None) -> Tensor:
        """The array that a stage starts from: the given one, else the network's own.

        rows: how many the given one must have; any number by default. InputError: its shape does not fit.
        """
        if name not in self.given:
            return own
        array, sides = self.given[name], list(own.shape[1:])
        if array.ndim != own.ndim or list(array.shape[1:]) != sides or rows not in (None, len(array)):
            wanted = ["any" if rows is None else rows, *sides]
            raise InputError(f"--inputs: {name} is {list(array.shape)} instead of [{', '.join(map(str, wanted))}]")
        return torch.from_numpy(array).to(own.dtype)


def check_below(name: str, values: Tensor, *limits: int) -> None:
    """InputError: the given array `name`, [..., len(limits)], has a value that is negative, or not below its limit."""
    if ((values < 0) | (values >= torch.tensor(limits))).any():
        raise InputError(f"--inputs: {name} has values that are negative or not below {', '.join(map(str, limits))}")


def read_inputs(photo: Path, rule: ResizeRule, inputs: Path | None = None) -> Inputs:
    """InputError: an unreadable photo, no file of arrays, or one of an array's companions is missing."""
    given = read_arrays(inputs) if inputs else {}
    for group in TOGETHER:
        missing = [name for name in group if name not in given]
        if 0 < len(missing) < len(group):
            raise InputError(f"{inputs}: lacks {', '.join(missing)}, which {group[0]} and others of its rows need")
    return Inputs(to_network(read_photo(photo), rule), given)
