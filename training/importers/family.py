"""What an importer of one family of networks knows, and the one way from its tensors to ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.config import Config
from training.model.upsnet import UPSNet
from upsnet.errors import InputError

Weights = dict[str, Tensor]  # by their names in the file
COUNTER = "num_batches_tracked"  # of a batch normalisation; of no use at test time, and many files lack it
EPSILON = 1e-5  # that a batch normalisation adds to its variance


class Change(NamedTuple):
    """What makes our tensor of theirs."""

    apply: Callable[[Tensor], Tensor]
    added_rows: int = 0  # that ours has more


class Source(NamedTuple):
    """Where a tensor of ours comes from."""

    name: str
    change: Change


SAME = Change(lambda tensor: tensor)
RGB = Change(lambda tensor: tensor.flip(1))  # of a convolution that reads an image: its input channels, BGR there


class Rows(NamedTuple):
    """Of a tensor: so many for each class, and more."""

    per_class: int = 1
    more: int = 0


class Family(NamedTuple):
    """Networks whose files have the same names, and compute by the same conventions."""

    name: str
    beginnings: tuple[str, ...]  # of keys, in this family's files alone
    settings: Mapping[str, object]  # what a configuration must say
    configs: str  # which ones do
    class_counts: Callable[[Weights, Path], tuple[int, int]]  # stuff and things
    class_rows: Mapping[str, Mapping[str, Rows]]  # kind of class -> layer -> rows of its weight and bias
    prepare: Callable[[Weights, Config, Path], tuple[Weights, list[str]]]  # the tensors to fit, lines for the user
    sources: Callable[[UPSNet], dict[str, Source]]  # of every key of the network's state_dict

    def check_classes(self, weights: Weights, source: Path) -> None:
        """InputError: tensors of the file contradict each other in a number of classes; it names them."""
        for kind, layers in self.class_rows.items():
            said: dict[float, list[str]] = {}
            for layer, rows in layers.items():
                for name in (f"{layer}.weight", f"{layer}.bias"):
                    if name in weights and weights[name].ndim:
                        said.setdefault((len(weights[name]) - rows.more) / rows.per_class, []).append(name)
            if len(said) > 1:
                parts = [f"{count:g} by {' and '.join(names)}" for count, names in said.items()]
                raise InputError(f"{source}: its tensors contradict each other, {kind}: {'; '.join(parts)}")

    def differing(self, settings: Config) -> list[str]:
        """What a configuration must say, and does not: lines of YAML."""
        values = settings.model_dump(mode="json")
        return [f"{key}: {_in_yaml(value)}" for key, value in self.settings.items() if _leaf(values, key) != value]

    def check(self, settings: Config, config: Path, source: Path) -> None:
        """InputError: the configuration is not one for this family; it names every key to set."""
        if wrong := self.differing(settings):
            raise InputError(
                f"{config}: {source} is of {self.name}, whose weights need other settings: set {', '.join(wrong)}; or "
                f"take {self.configs}"
            )


def their_names(model: UPSNet, modules: Mapping[str, str]) -> dict[str, str]:
    """Every key of `model`'s state_dict -> the key in the file; `modules`: our modules that hold tensors -> theirs."""
    split = {key: key.rpartition(".") for key in model.state_dict()}
    return {key: f"{modules[module]}.{leaf}" for key, (module, _, leaf) in split.items()}


def resnet_blocks(network: nn.Module) -> Iterator[tuple[str, int, int]]:
    """Of timm's ResNet: a block's name, its stage (2 to 5, as the papers count) and its place there."""
    for stage in range(2, 6):
        for block in range(len(getattr(network, f"layer{stage - 1}"))):
            yield f"layer{stage - 1}.{block}", stage, block


def check_both_kinds(stuff: int, things: int, network: str, tensors: str, path: Path) -> None:
    """InputError: the rows of `tensors` leave no stuff, or no things."""
    if stuff < 1 or things < 1:
        raise InputError(
            f"{path}: no {network}, which has stuff and things: {tensors} make {stuff} and {things} classes of them"
        )


def fit(own: Mapping[str, Tensor], sources: Mapping[str, Source], weights: Weights) -> tuple[Weights, list[str]]:
    """Their tensors under our names; where one is missing or does not fit, `own`'s, a network's of ours.

    With a line for every key that is missing, unexpected, or of another shape or type, or holds what no network can
    compute with: NaN, infinity, a variance below 0.
    """
    state, problems = dict(own), []
    for key, tensor in own.items():
        name, change = sources[key]
        given, shape = (
            weights.get(name),
            [tensor.shape[0] - change.added_rows, *tensor.shape[1:]] if tensor.ndim else [],
        )
        if given is None:
            if not name.endswith(COUNTER):
                problems.append(f"missing {name} {shape}")
        elif list(given.shape) != shape:
            problems.append(f"{name} is {list(given.shape)} instead of {shape}")
        elif given.is_floating_point() != tensor.is_floating_point() or given.is_complex():
            problems.append(f"{name} is {_type(given)} instead of {_type(tensor)}")
        elif not torch.isfinite(value := given.to(tensor.dtype)).all():
            problems.append(f"{name} is not finite")
        elif name.endswith(".running_var") and (value <= -EPSILON).any():
            problems.append(f"{name} is below 0, and no variance is")
        else:
            state[key] = change.apply(value)
    known = {source.name for source in sources.values()}
    problems += [f"unexpected {name} {list(tensor.shape)}" for name, tensor in weights.items() if name not in known]
    return state, problems


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _leaf(values: object, key: str) -> object:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _in_yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
