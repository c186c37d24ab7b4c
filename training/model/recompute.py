"""Activation checkpointing (Chen et al., 2016): what a backbone's blocks compute inside is not kept for the backward
pass but computed again there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from upsnet.errors import InputError


def recompute_blocks(backbone: nn.Module) -> None:
    """In place: each block keeps its input alone; names and weights stay as they are. InputError: it has no blocks."""
    found = list(blocks(backbone))
    if not found:
        raise InputError("compute.recompute_backbone: this backbone has no rows of blocks; leave it out")
    for block in found:
        block.forward = partial(_recomputed, block, block.forward)  # type: ignore[method-assign]


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules in a row (nn.Sequential) that have more than one layer, and are no rows themselves."""
    for child in network.children():
        layers = sum(isinstance(each, nn.Conv2d | nn.Linear) for each in child.modules())
        if isinstance(network, nn.Sequential) and not isinstance(child, nn.Sequential) and layers > 1:
            yield child
        else:
            yield from blocks(child)


def _recomputed(block: nn.Module, forward: Any, *inputs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs)
    contexts = partial(_contexts, block)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Around the first pass and around those that follow."""
    return nullcontext(), WithoutStatistics(block)


class WithoutStatistics(AbstractContextManager[None]):
    """Batch normalisations in training count in copies of their running statistics: the first pass has counted. Can be
    entered again: PyTorch does so for each backward pass."""

    def __init__(self, block: nn.Module) -> None:
        self.norms = [each for each in block.modules() if isinstance(each, _BatchNorm) and each.training]
        self.own: list[dict[str, Tensor | None]] = []

    def __enter__(self) -> None:
        self.own = [dict(norm._buffers) for norm in self.norms]
        for norm in self.norms:
            norm._buffers = {name: None if own is None else own.clone() for name, own in norm._buffers.items()}

    def __exit__(self, *_: object) -> None:
        for norm, own in zip(self.norms, self.own, strict=True):
            norm._buffers = own
