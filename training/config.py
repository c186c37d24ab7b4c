"""The typed configuration of a run. One YAML file, unknown keys refused, every default the published one."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from training.model_config import TOP_STRIDE, Count, ModelConfig, Positive, Section, Share
from upsnet.datasets.split import AnySplit
from upsnet.errors import InputError, one_line
from upsnet.geometry import ResizeRule
from upsnet.strict_yaml import leaves, load_yaml


def _fraction(value: object) -> object:
    """Python would also read 1e999999999, for hours."""
    if isinstance(value, str) and not re.fullmatch(r"\d{1,9}(/0*[1-9]\d{0,8}|\.\d{1,18})?", value):
        raise ValueError("write a fraction, as 2/3 or 0.9")
    return value


class LossConfig(Section):
    """Weights of the branches: w_f, .2 w_f and w_p of the paper on COCO. Only UPSNet's panoptic head has the second and
    the third: with `merge: heuristic` they are 0, and the first is .5 unless given.
    boxes: of the box head's regression; dice: of the masks' dice loss (Milletari et al., 3DV 2016), beside their
    cross-entropy."""

    semantic: float = Field(0.2, ge=0)
    semantic_roi: float = Field(0.04, ge=0)
    panoptic: float = Field(0.1, ge=0)
    boxes: float = Field(1.0, ge=0)
    dice: float = Field(0.0, ge=0)


OF_HEURISTIC = {"semantic": 0.5, "semantic_roi": 0.0, "panoptic": 0.0}  # its loss unless given


class AugmentConfig(Section):
    """flip: probability of a horizontal flip. color: strength c of the photometric jitter: brightness, contrast and
    saturation times a factor from [1 - c, 1 + c], hue (in YIQ) turned by up to c / 10 of the circle. scale: range of
    the zoom, drawn uniformly, after which a random window of at most the unzoomed size is cut out. copy_paste:
    probability that things of another training image are pasted on this one (Ghiasi et al., CVPR 2021)."""

    flip: Share = 0.5
    color: Share = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    copy_paste: Share = 0.0


class DataConfig(Section):
    """`short_sides`: one of them is drawn for each training image; evaluation uses `resize`. group_aspect_ratio: the
    images of one forward pass are all portrait or all landscape. check: what is looked at before the first step, every
    image (full) or what the JSONs say and whether the files are there (json). draft: training photos that are JPEGs of
    far more pixels than the network sees are decoded at a half, a quarter or an eighth of their size, but never under
    twice the network's."""

    train: AnySplit
    val: AnySplit
    resize: ResizeRule
    short_sides: tuple[Positive, ...] = ()
    augment: AugmentConfig = AugmentConfig()
    group_aspect_ratio: bool = False
    check: Literal["full", "json"] = "full"
    draft: bool = True
    workers: int = Field(0, ge=0, le=1024)

    @model_validator(mode="after")
    def _whole_cells(self) -> DataConfig:
        if self.resize.divisor % TOP_STRIDE:
            raise ValueError(
                f"resize: divisor {self.resize.divisor} is no multiple of {TOP_STRIDE}, the backbones' stride"
            )
        return self


class ScheduleConfig(Section):
    """How long, how fast, and with how many images at once.

    images_per_step: the global batch (None: processes x images_per_gpu). images_per_gpu: images in one forward pass
    (None: the process's whole share of the global batch); a larger share is gathered in several passes (gradient
    accumulation). Exactly one of `iterations` and `images` gives the length. lr None: .00125 an image (SGD's published
    rule). decay: fractions of the schedule, as 2/3, after which the lr is a tenth. ema: decay of the weights' average.
    offset_lr: the learning rate of the convolutions that say where deformable ones sample, as a share of the others'.
    """

    iterations: Positive | None = None
    images: Positive | None = None
    images_per_step: Positive | None = None
    images_per_gpu: Positive | None = None
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float | None = Field(None, gt=0)
    momentum: Share = 0.9
    weight_decay: float = Field(1e-4, ge=0)
    warmup: Count = 1500
    policy: Literal["step", "cosine"] = "step"
    decay: tuple[Annotated[Fraction, BeforeValidator(_fraction), Field(gt=0, lt=1)], ...] = ()
    clip_norm: float | None = Field(None, gt=0)
    ema: float | None = Field(None, gt=0, lt=1)
    offset_lr: float = Field(1.0, ge=0)
    checkpoint_every: Positive = 1000
    evaluate_every: Count = 0
    evaluate_images: Positive | None = None
    log_every: Positive = 20

    @model_validator(mode="after")
    def _complete(self) -> ScheduleConfig:
        if (self.iterations is None) == (self.images is None):
            raise ValueError("give exactly one of iterations and images: the length of the schedule")
        if self.images_per_step is None and self.images_per_gpu is None:
            raise ValueError("give images_per_step (the global batch), images_per_gpu (one forward pass), or both")
        return self


class ComputeConfig(Section):
    """How a step is computed. precision: of the forward pass (autocast); weights and optimizer stay fp32. tf32: types
    as in fp32, but a GPU's convolutions and matrix products round what they read to TF32. channels_last: the memory
    format of weights and features. exchange: the type in which several processes exchange their gradients.
    recompute_backbone: activation checkpointing: memory for time."""

    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False
    compile: bool = False
    exchange: Literal["fp32", "bf16"] = "fp32"
    recompute_backbone: bool = False

    @model_validator(mode="after")
    def _one_recomputes(self) -> ComputeConfig:
        if self.compile and self.recompute_backbone:
            raise ValueError(
                "recompute_backbone and compile: a compiled backbone decides itself what it recomputes; choose one"
            )
        return self


class Config(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]*[A-Za-z0-9_-][A-Za-z0-9_.-]*$", max_length=200)
    seed: int = Field(0, ge=0, lt=2**63)
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    data: DataConfig
    schedule: ScheduleConfig
    compute: ComputeConfig = ComputeConfig()

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, values: object) -> object:
        part = values
        for key in ("model", "panoptic", "merge"):
            part = part.get(key) if isinstance(part, dict) else None
        loss = values.get("loss", {}) if isinstance(values, dict) else None
        if part == "heuristic" and isinstance(loss, dict):
            return values | {"loss": OF_HEURISTIC | loss}  # type: ignore[operator]
        return values

    @model_validator(mode="after")
    def _no_loss_without_its_branch(self) -> Config:
        given = [f"loss.{key}" for key in ("semantic_roi", "panoptic") if getattr(self.loss, key)]
        if given and self.model.panoptic.merge == "heuristic":
            raise ValueError(
                f"{' and '.join(given)}: only model.panoptic.merge: logits has such a loss; with heuristic leave it out"
            )
        return self


def parse_config(values: object, source: str) -> Config:
    """Validate a nested mapping. InputError names every wrong key and `source`."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{source}: {one_line(error)}") from None


def load_config(path: Path, overrides: tuple[str, ...] = ()) -> Config:
    """Read a YAML configuration; `overrides` are `section.key=value` strings, applied on top."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such configuration; see training/configs/") from None
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: not a readable YAML file ({' '.join(str(error).split())})") from None
    values = _parse_yaml(text, f"{path}: not a readable YAML file")
    if not isinstance(values, dict):
        raise InputError(f"{path}: a configuration is a mapping of sections, found {type(values).__name__}")
    for override in overrides:
        _apply(values, override)
    return parse_config(values, str(path))


def dump_config(config: Config) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def differing_keys(a: Section, b: Section) -> dict[str, str]:
    """Every leaf key in which two configurations of one kind differ -> "a's value against b's value"."""
    left, right = leaves(a.model_dump(mode="json")), leaves(b.model_dump(mode="json"))
    keys = sorted(left.keys() | right.keys())
    return {key: f"{left.get(key)} against {right.get(key)}" for key in keys if left.get(key) != right.get(key)}


def _apply(values: dict, override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator:
        raise InputError(f"override {override!r}: write it as section.key=value")
    *sections, leaf = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise InputError(f"override {override!r}: {section} is a value, not a section")
    values[leaf] = _parse_yaml(text, f"override {override!r}: not YAML")


def _parse_yaml(text: str, complaint: str) -> Any:
    """ValueError: a date or a number that Python does not have. RecursionError: nested a thousand times."""
    try:
        return load_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{complaint} ({' '.join(str(error).split())})") from None
