"""Checkpoints: one file of plain tensors and values that carries everything needed to resume or to export."""

from __future__ import annotations

import pickle
import platform
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from panoptic.categories import Categories
from panoptic.errors import InputError
from panoptic.files import atomic_path
from training.config import Config, differing_keys, parse_config
from training.model.upsnet import UPSNet

FORMAT = "upsnet-trt checkpoint"
FORMAT_VERSION = 1
RETRAIN = "give the path of a whole checkpoint (runs/<name>/last.pt or best.pt), or train again"

# What torch.load raises for an archive that is whole but is not a checkpoint of plain values.
UNREADABLE = (RuntimeError, pickle.UnpicklingError, EOFError, AttributeError, LookupError, TypeError, ValueError)


class Checkpoint(NamedTuple):
    """The state after `step` updates. `best_pq` is None until the first evaluation."""

    config: Config
    categories: Categories
    step: int
    best_pq: float | None
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    versions: dict[str, str]


def versions() -> dict[str, str]:
    """Versions of what a run's numbers depend on."""
    return {"python": platform.python_version()} | {
        name: version(name) for name in ("torch", "torchvision", "numpy", "pillow")
    }


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint under a temporary name, then move it into place: the old one is whole until then."""
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "config": checkpoint.config.model_dump(mode="json"),
        "categories": checkpoint.categories.to_coco(),
        "step": checkpoint.step,
        "best_pq": checkpoint.best_pq,
        "model": checkpoint.model,
        "optimizer": checkpoint.optimizer,
        "versions": checkpoint.versions,
    }
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU. InputError: missing, truncated or corrupt, not ours, of another format version.

    Nothing but tensors and plain values is unpickled. Every byte is checked against the archive's CRCs first, because
    torch does not, and weights with a flipped bit would otherwise be taken for good ones.
    """
    path = Path(path)
    _check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE:
        raise InputError(f"{path}: not a checkpoint of this project; {RETRAIN}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path}: not a checkpoint of this project; {RETRAIN}")
    if content.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path}: checkpoint format {content.get('format_version')}, this version reads {FORMAT_VERSION}; "
            "use the version of upsnet-trt that wrote it, or train again"
        )
    missing = [field for field in Checkpoint._fields if field not in content]
    if missing:
        raise InputError(f"{path}: checkpoint without {', '.join(missing)}; {RETRAIN}")
    return Checkpoint(
        config=parse_config(content["config"], f"{path} (its configuration)"),
        categories=Categories.from_coco(content["categories"]),
        step=content["step"],
        best_pq=content["best_pq"],
        model=content["model"],
        optimizer=content["optimizer"],
        versions=content["versions"],
    )


def load_model(path: Path, config: Config | None = None) -> tuple[UPSNet, Config, Categories, int]:
    """The network of a checkpoint in eval mode, its configuration, its categories and its step.

    InputError, besides `load`'s: the model section of `config` is not the checkpoint's (every differing key is named);
    the weights are not those of the configured network (every missing, unexpected and mis-shaped key is named).
    """
    checkpoint = load(path)
    differing = differing_keys(checkpoint.config.model, config.model) if config else {}
    if differing:
        named = "; ".join(f"model.{key} ({values})" for key, values in differing.items())
        raise InputError(
            f"{path}: checkpoint of another configuration (checkpoint against given): {named}; "
            "use the configuration it was trained with (config.yaml beside it), or train again"
        )
    model = UPSNet(checkpoint.config.model, checkpoint.categories.num_stuff, checkpoint.categories.num_things)
    load_weights(model, checkpoint.model, path)
    return model.eval(), checkpoint.config, checkpoint.categories, checkpoint.step


def load_weights(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Strict: one InputError lists every missing, unexpected and mis-shaped key of the file at `path`."""
    own = model.state_dict()
    problems = [f"missing {key}" for key in own if key not in weights]
    problems += [f"unexpected {key}" for key in weights if key not in own]
    problems += [
        f"{key} is {list(weights[key].shape)} instead of {list(tensor.shape)}"
        for key, tensor in own.items()
        if key in weights and weights[key].shape != tensor.shape
    ]
    if problems:
        raise InputError(f"{path}: its weights do not fit the network: {'; '.join(problems)}; {RETRAIN}")
    model.load_state_dict(weights)


def _check_archive(path: Path) -> None:
    """InputError unless `path` is a zip archive (torch.save's container) whose every member has its right CRC."""
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; train first, or give the path of a checkpoint")
    damaged = f"{path}: truncated or corrupt, or not a checkpoint; {RETRAIN}"
    try:
        with zipfile.ZipFile(path) as archive:
            attributes = [member.external_attr for member in archive.infolist()]  # torch writes 0 and obeys others
            if any(attributes) or archive.testzip() is not None:
                raise InputError(damaged)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError):
        raise InputError(damaged) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {RETRAIN}") from None
