"""What the arrays of one photo start from: the photo itself, and stages that another run computed."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from training.importers.arrays import Arrays, read_arrays
from upsnet.geometry import NetworkBatch, NetworkImage, ResizeRule, collate, to_network
from upsnet.photos import read_photo


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

    def stage(self, name: str, own: Tensor) -> Tensor:
        """The array that a stage starts from: the given one, else the network's own."""
        return torch.from_numpy(self.given[name]).to(own.dtype) if name in self.given else own


def read_inputs(photo: Path, rule: ResizeRule, inputs: Path | None = None) -> Inputs:
    """InputError: an unreadable photo, or no file of arrays."""
    return Inputs(to_network(read_photo(photo), rule), read_arrays(inputs) if inputs else {})
