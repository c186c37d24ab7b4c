"""The normalisation of a convolution outside the backbone: none, of groups of channels, or of the batch."""

from __future__ import annotations

import math

from torch import nn

from training.model_config import Norm

GROUPS = 32  # Wu and He, ECCV 2018; fewer where they do not divide the channels


def make_norm(kind: Norm, channels: int) -> nn.Module:
    """The layer after a convolution of so many output channels. `batch` is one over the batches of all processes (see
    training/batch_norm.py), and the exporter folds it into the convolution."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(math.gcd(GROUPS, channels), channels) if kind == "group" else nn.Identity()
