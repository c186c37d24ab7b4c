"""Checkpoints: one safetensors file that carries everything needed to resume or to export.

Tensors: `model.*`, the weights' average `ema.*`, and `optimizer.<parameter>.<what>`; everything else is text in the
metadata, with a SHA-256 over all of it, because the format itself would not notice a flipped bit. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from training.config import Config, parse_config
from training.model.upsnet import UPSNet
from training.wrong_file import FOREIGN, what_it_is
from upsnet.categories import Categories
from upsnet.errors import InputError, one_line
from upsnet.files import WriteError, atomic_path, writing
from upsnet.json_model import MOST_STEPS

FORMAT = "upsnet-trt checkpoint"
FORMAT_VERSION = 2
RETRAIN = "give the path of a whole checkpoint (runs/<name>/last.safetensors or best.safetensors), or train again"


class Checkpoint(NamedTuple):
    """The state after `step` updates. `best_pq` is None until the first evaluation; `optimizer` is {} in a file that
    holds weights alone; `evaluated`: whether an evaluation that was due at this step has been done."""

    config: Config
    categories: Categories
    step: int
    best_pq: float | None
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]  # <parameter's name>.<exp_avg, momentum_buffer ...>
    versions: dict[str, str]
    ema: dict[str, Tensor] = {}  # noqa: RUF012 (never changed)
    images_per_step: int = 0  # the run's global batch; 0: not of a run
    evaluated: bool = True
    scaler: dict[str, float] = {}  # noqa: RUF012 (state of fp16's loss scaling)
    image_ids: str = ""  # digest of the training images' ids

    @property
    def weights(self) -> dict[str, Tensor]:
        """What to predict with: the average where there is one."""
        return self.ema or self.model


TENSORS = ("model", "ema", "optimizer")  # a tensor's name in the file begins with one of these fields
VALUES = tuple(name for name in Checkpoint._fields if name not in TENSORS)  # the file's metadata has these as JSON


class Values(BaseModel):
    """What a file's metadata must hold, besides a configuration."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    step: int = Field(ge=0, le=MOST_STEPS)
    best_pq: float | None
    versions: dict[str, str]
    images_per_step: int = Field(ge=0, le=MOST_STEPS)
    evaluated: bool
    scaler: dict[str, float]
    image_ids: str
    categories: list[dict[str, Any]]


def versions() -> dict[str, str]:
    """Versions of what a run's numbers depend on."""
    return {"python": platform.python_version()} | {
        name: version(name) for name in ("torch", "torchvision", "numpy", "pillow")
    }


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint under a temporary name, then move it into place: the old one is whole until then.

    It is on the disk, not in a cache, when this returns. Tensors on the CPU are written from where they lie.
    InputError where it cannot be written.
    """
    tensors = {
        f"{section}.{name}": tensor.detach().cpu().contiguous()
        for section in TENSORS
        for name, tensor in getattr(checkpoint, section).items()
    }
    values = {name: getattr(checkpoint, name) for name in VALUES}
    values["config"] = checkpoint.config.model_dump(mode="json")
    values["categories"] = checkpoint.categories.to_coco()
    metadata = {"format": FORMAT, "format_version": str(FORMAT_VERSION)}
    metadata |= {name: json.dumps(value, allow_nan=False) for name, value in values.items()}
    metadata |= {"sha256": digest(tensors, metadata)}
    try:
        with atomic_path(path) as temporary:
            _write(temporary, tensors, metadata)
    except WriteError as error:
        kept = "; the one that was there before is whole, and the same command goes on from it once there is room"
        raise InputError(f"{error}{kept if Path(path).is_file() else ''}") from None
    _flush(Path(path).parent)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU. InputError: missing, truncated or corrupt, not ours, of another format version,
    or with numbers that are not finite.

    Every byte is checked against the SHA-256, or weights with a flipped bit would be taken for good ones.
    """
    path = Path(path)
    tensors, metadata = _read(path)
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path}: not a checkpoint of this project: {FOREIGN}; {RETRAIN}")
    if metadata.get("format_version") != str(FORMAT_VERSION):
        raise InputError(
            f"{path}: checkpoint format {metadata.get('format_version')}, this version reads {FORMAT_VERSION}; "
            "use the version of upsnet-trt that wrote it, or train again"
        )
    if metadata.pop("sha256", None) != digest(tensors, metadata):
        raise InputError(f"{path}: truncated or corrupt (its SHA-256 is another); {RETRAIN}")
    if bad := not_finite(tensors):
        raise InputError(
            f"{path}: not finite: {', '.join(bad[:3])}{f' and {len(bad) - 3} more' * (len(bad) > 3)}; {RETRAIN}"
        )
    if missing := [name for name in VALUES if name not in metadata]:
        raise InputError(f"{path}: checkpoint without {', '.join(missing)}; {RETRAIN}")
    values = _parse({name: metadata[name] for name in VALUES}, path)
    try:
        values["config"] = parse_config(values["config"], f"{path} (its configuration)")
    except InputError as error:
        raise InputError(f"{error}; use the version of upsnet-trt that wrote it, or train again") from None
    try:
        values["categories"] = Categories.from_coco(values["categories"])
    except InputError as error:
        raise InputError(f"{path}: {error}; {RETRAIN}") from None
    values |= {section: _within(section, tensors) for section in TENSORS}
    return Checkpoint(**values)


def load_model(path: Path) -> tuple[UPSNet, Config, Categories, int]:
    """The network of a checkpoint in eval mode, its configuration, its categories and its step.

    The weights are the averaged ones where the run averaged them. InputError, besides `load`'s: the weights are not
    those of the configured network (every missing, unexpected and mis-shaped key is named).
    """
    checkpoint = load(path)
    model = UPSNet(checkpoint.config.model, checkpoint.categories.num_stuff, checkpoint.categories.num_things)
    load_weights(model, checkpoint.weights, path)
    return model.eval(), checkpoint.config, checkpoint.categories, checkpoint.step


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Strict: one InputError lists every missing, unexpected and mis-shaped key of the file at `path`."""
    copy_tensors(model.state_dict(), weights, f"{path}: its weights do not fit the network")


def copy_tensors(own: Mapping[str, Tensor], saved: Mapping[str, Tensor], complaint: str) -> None:
    """Copy `saved` into the tensors `own` of the same names, in place. InputError, before anything is copied, that
    begins with `complaint` and lists every missing, unexpected and mis-shaped name."""
    problems = [f"missing {name}" for name in own if name not in saved]
    problems += [f"unexpected {name}" for name in saved if name not in own]
    problems += [
        f"{name} is {list(saved[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in saved and saved[name].shape != tensor.shape
    ]
    if problems:
        raise InputError(f"{complaint}: {'; '.join(problems)}; {RETRAIN}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors that hold a NaN or an infinity."""
    return [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]


def _parse(texts: Mapping[str, str], path: Path) -> dict[str, Any]:
    """The metadata's JSON. InputError where it is none, or not of this version's types."""
    try:
        values: dict[str, Any] = {name: json.loads(text) for name, text in texts.items()}
        Values.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{path}: {one_line(error)}; {RETRAIN}") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path}: its metadata are not JSON; {RETRAIN}") from None
    return values


def _within(section: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose name begins with `section` and a dot, without that."""
    prefix = f"{section}."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 of the metadata and of every contiguous CPU tensor's name, type, shape and bytes, by name."""
    described = {name: (str(tensor.dtype), list(tensor.shape)) for name, tensor in tensors.items()}
    result = hashlib.sha256(json.dumps([dict(metadata), described], sort_keys=True).encode())
    for name in sorted(tensors):
        result.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return result.hexdigest()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file. InputError where it is none, or not a whole one."""
    if path.is_dir():
        raise InputError(f"{path}: a folder, and no such checkpoint; give a file in it, as best.safetensors of a run")
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; train first, or give the path of a checkpoint")
    try:
        if other := what_it_is(path):
            raise InputError(f"{path}: not a checkpoint, but {other}")
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 (no dict)
    except SafetensorError:
        raise InputError(f"{path}: truncated or corrupt, or not a checkpoint; {RETRAIN}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {RETRAIN}") from None


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    try:
        save_file(dict(tensors), path, dict(metadata))
        with writing(path):
            _flush(path)
    except SafetensorError as error:  # of the system's words it keeps the text alone
        reason = str(error).rpartition("I/O error: ")[2]
        raise WriteError(path, reason.partition(" (os error")[0]) from None


def _flush(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
