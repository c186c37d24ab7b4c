"""The typed configuration of a run. One YAML file, unknown keys refused, every default the published one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from panoptic.errors import InputError, one_line
from panoptic.geometry import ResizeRule

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of the configuration: immutable, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BackboneConfig(Section):
    """ResNet-50's layout filled with MBConv blocks; the defaults are the published 200.6 M parameter network."""

    stem: tuple[Positive, Positive] = (32, 64)
    widths: tuple[Positive, Positive, Positive, Positive] = (256, 512, 1024, 2048)
    depths: tuple[Positive, Positive, Positive, Positive] = (3, 4, 6, 3)
    expansion: Positive = 6
    deformable: bool = False


class FpnConfig(Section):
    channels: Positive = 256
    global_context: bool = True
    upsample: Literal["nearest", "bilinear"] = "bilinear"


class RpnConfig(Section):
    channels: Positive = 256
    anchor_scale: float = Field(8.0, gt=0)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    train_top_n: Positive = 2000
    test_top_n: Positive = 1000
    nms_threshold: Fraction = 0.7
    positive_iou: Fraction = 0.7
    negative_iou: Fraction = 0.3
    samples: Positive = 256
    positive_fraction: Fraction = 0.5


class BoxHeadConfig(Section):
    hidden: Positive = 1024
    samples: Positive = 512
    positive_fraction: Fraction = 0.25
    positive_iou: Fraction = 0.5


class MaskHeadConfig(Section):
    channels: Positive = 256
    layers: Positive = 4


class SemanticHeadConfig(Section):
    """`channels`: output channels of each deformable 3x3 convolution."""

    channels: tuple[Positive, ...] = (256, 128, 128)


class PanopticConfig(Section):
    """The parameter-free panoptic head. A proposal keeps its best class alone, which is exact from a score of .5 up."""

    score_threshold: float = Field(0.6, ge=0.5, lt=1.0)
    nms_threshold: Fraction = 0.5
    max_detections: int = Field(100, ge=1, le=150)
    mask_overlap: Fraction = 0.3
    stuff_area_limit: float = Field(4096.0, ge=0)
    keep_fraction: Fraction = 0.7


class ModelConfig(Section):
    backbone: BackboneConfig = BackboneConfig()
    fpn: FpnConfig = FpnConfig()
    rpn: RpnConfig = RpnConfig()
    box_head: BoxHeadConfig = BoxHeadConfig()
    mask_head: MaskHeadConfig = MaskHeadConfig()
    semantic_head: SemanticHeadConfig = SemanticHeadConfig()
    panoptic: PanopticConfig = PanopticConfig()
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)


class LossConfig(Section):
    """Weights of the branches: w_f, .2 w_f and w_p of the paper on COCO."""

    semantic: float = Field(0.2, ge=0)
    semantic_roi: float = Field(0.04, ge=0)
    panoptic: float = Field(0.1, ge=0)


class SplitConfig(Section):
    """A data set in the official COCO panoptic format."""

    json_file: Path
    segments: Path
    images: Path


class AugmentConfig(Section):
    """flip: probability; color: strength of the photometric jitter; scale: range of the random zoom."""

    flip: Fraction = 0.5
    color: Fraction = 0.0
    scale: tuple[float, float] = (1.0, 1.0)


class DataConfig(Section):
    """`short_sides`: one of them is drawn for each training image; evaluation uses `resize`."""

    train: SplitConfig
    val: SplitConfig
    resize: ResizeRule
    short_sides: tuple[Positive, ...] = ()
    augment: AugmentConfig = AugmentConfig()
    workers: int = Field(0, ge=0)


class ScheduleConfig(Section):
    """`images_per_step` is the global batch over all processes. lr None: .00125 an image (SGD's published rule)."""

    iterations: Positive
    images_per_step: Positive
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float | None = Field(None, gt=0)
    momentum: Fraction = 0.9
    weight_decay: float = Field(1e-4, ge=0)
    warmup: int = Field(1500, ge=0)
    policy: Literal["step", "cosine"] = "step"
    decay: tuple[Positive, ...] = ()
    clip_norm: float | None = Field(None, gt=0)
    checkpoint_every: Positive = 1000
    evaluate_every: int = Field(0, ge=0)
    evaluate_images: Positive = 50
    log_every: Positive = 20

    @property
    def base_lr(self) -> float:
        return self.lr if self.lr is not None else 0.00125 * self.images_per_step


class Config(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    seed: int = Field(0, ge=0)
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    data: DataConfig
    schedule: ScheduleConfig

    @model_validator(mode="after")
    def _decay_inside_schedule(self) -> Config:
        late = [step for step in self.schedule.decay if step >= self.schedule.iterations]
        if late:
            raise ValueError(f"schedule.decay {late} must come before schedule.iterations {self.schedule.iterations}")
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
        values = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such configuration; see training/configs/") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: not a readable YAML file ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: a configuration is a mapping of sections, found {type(values).__name__}")
    for override in overrides:
        _apply(values, override)
    return parse_config(values, str(path))


def dump_config(config: Config) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def differing_keys(a: Section, b: Section) -> dict[str, str]:
    """Every leaf key in which two configurations of one kind differ -> "a's value against b's value"."""
    left, right = _leaves(a.model_dump(mode="json")), _leaves(b.model_dump(mode="json"))
    keys = sorted(left.keys() | right.keys())
    return {key: f"{left.get(key)} against {right.get(key)}" for key in keys if left.get(key) != right.get(key)}


def _leaves(values: dict, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _leaves(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _apply(values: dict, override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator:
        raise InputError(f"override {override!r}: write it as section.key=value")
    *sections, leaf = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise InputError(f"override {override!r}: {section} is a value, not a section")
    values[leaf] = yaml.safe_load(text)
