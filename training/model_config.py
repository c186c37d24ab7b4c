"""The part of a configuration that the network is built from, and what all parts are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from training.conventions import NAMED, OURS, ConventionsName

MOST = 2**31 - 1  # of any count
TOP_STRIDE = 32  # of a backbone's coarsest features, P5: an image alone is padded to multiples of it
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0, le=MOST)]
Positive = Annotated[int, Field(ge=1, le=MOST)]
Channels = Annotated[int, Field(ge=1, le=2**14)]
Layers = Annotated[int, Field(ge=1, le=1000)]
PositiveFloat = Annotated[float, Field(gt=0)]
Norm = Literal["none", "group", "batch"]


def _not_deformable(value: object) -> object:
    if value is not False:
        raise ValueError(
            "the hybrid backbone has no deformable convolutions; leave it out, or take a ResNet: "
            "backbone: {kind: timm, name: resnet50, deformable_stages: [3, 4, 5]}"
        )
    return value


class Section(BaseModel):
    """A part of the configuration: immutable, unknown keys are errors, and so are numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class HybridConfig(Section):
    """ResNet-50's layout filled with MBConv blocks; the defaults are the published 200.6 M parameter network."""

    kind: Literal["hybrid"] = "hybrid"
    stem: tuple[Channels, Channels] = (32, 64)
    widths: tuple[Channels, Channels, Channels, Channels] = (256, 512, 1024, 2048)
    depths: tuple[Layers, Layers, Layers, Layers] = (3, 4, 6, 3)
    expansion: Layers = 6
    deformable: Annotated[Literal[False], BeforeValidator(_not_deformable)] = Field(
        False, exclude=True
    )  # configurations of older versions say so


class BottleneckConfig(Section):
    """The hybrid's layout filled with ResNet's bottlenecks (He et al., CVPR 2016), to hold its MBConv blocks against.

    inner: channels of the 3x3 convolutions, one for each stage; these and the others' defaults are ResNet-50's.
    """

    kind: Literal["bottleneck"]
    stem: tuple[Channels, Channels] = (32, 64)
    widths: tuple[Channels, Channels, Channels, Channels] = (256, 512, 1024, 2048)
    depths: tuple[Layers, Layers, Layers, Layers] = (3, 4, 6, 3)
    inner: tuple[Channels, Channels, Channels, Channels] = (64, 128, 256, 512)


class TimmConfig(Section):
    """A timm network with features at strides 4, 8, 16 and 32.

    pretrained: start from timm's weights of that name (needs a network connection), or from the file `weights`, in
    timm's own format. freeze: how many stages are not trained (1: the stem, 2: res2 too); frozen_norm: the batch
    normalisations keep their statistics and scales. Random weights are not kept so: a run that freezes starts from
    pretrained ones or from another network (--init).
    deformable_stages (ResNets): the 3x3 convolutions of these stages, 2 to 5, are deformable.
    """

    kind: Literal["timm"]
    name: str
    pretrained: bool = False
    weights: Path | None = None
    freeze: int = Field(0, ge=0, le=5)
    frozen_norm: bool = False
    deformable_stages: tuple[Annotated[int, Field(ge=2, le=5)], ...] = ()


def _decisive(value: object) -> object:
    if isinstance(value, int | float) and value < 0.5:
        raise ValueError("at least 0.5: the best class of a proposal is looked at alone, below that two could count")
    return value


BackboneConfig = Annotated[HybridConfig | BottleneckConfig | TimmConfig, Field(discriminator="kind")]


class FpnConfig(Section):
    """norm: of the lateral and the smoothing convolutions, see training/model/norm.py."""

    channels: Channels = 256
    global_context: bool = True
    upsample: Literal["nearest", "bilinear"] = "bilinear"
    norm: Norm = "none"


class RpnConfig(Section):
    """straddling: anchors that cross the border of the image are trained, too. beta: the deltas' smooth L1 loss is
    quadratic below it; 0: L1."""

    channels: Channels = 256
    anchor_scale: float = Field(8.0, gt=0, le=1000)
    anchor_ratios: tuple[Annotated[float, Field(ge=0.01, le=100)], ...] = Field((0.5, 1.0, 2.0), min_length=1)
    train_top_n: Positive = 2000
    test_top_n: Positive = 1000
    nms_threshold: Share = 0.7
    positive_iou: Share = 0.7
    negative_iou: Share = 0.3
    samples: Positive = 256
    positive_fraction: Share = 0.5
    straddling: bool = False
    beta: float = Field(1 / 9, ge=0)


class BoxHeadConfig(Section):
    """regression: the loss of the deltas: their smooth L1 with `beta` as the RPN's, or the generalised IoU of the boxes
    (Rezatofighi et al., CVPR 2019)."""

    hidden: Channels = 1024
    samples: Positive = 512
    positive_fraction: Share = 0.25
    positive_iou: Share = 0.5
    regression: Literal["smooth_l1", "giou"] = "smooth_l1"
    beta: float = Field(1.0, ge=0)


class MaskHeadConfig(Section):
    """norm: of the 3x3 convolutions; not of the batch: rows without an RoI would count."""

    channels: Channels = 256
    layers: Layers = 4
    norm: Literal["none", "group"] = "none"


class SubnetConfig(Section):
    """UPSNet's semantic head, one subnet for all levels. `channels`: output channels of each 3x3 convolution.
    `deformable` False makes them ordinary ones (ablation). norm: of each of them; `batch` mixes the statistics of the
    four levels outside of training, prefer `group`."""

    kind: Literal["subnet"] = "subnet"
    channels: tuple[Channels, ...] = Field((256, 128, 128), min_length=1)
    deformable: bool = True
    norm: Norm = "none"


class ChainsConfig(Section):
    """Panoptic FPN's semantic head (Kirillov et al., CVPR 2019): a chain of convolutions for each level, GroupNorm."""

    kind: Literal["chains"]
    channels: Channels = 128
    groups: Channels = 32  # of GroupNorm

    @model_validator(mode="after")
    def _divisible(self) -> ChainsConfig:
        if self.channels % self.groups:
            raise ValueError(f"{self.channels} channels do not make {self.groups} groups")
        return self


SemanticHeadConfig = Annotated[SubnetConfig | ChainsConfig, Field(discriminator="kind")]


class PanopticConfig(Section):
    """The parameter-free panoptic head. It looks at the best class of each proposal: no other can score over .5.

    merge: how detections and semantic logits become one map. `logits`: UPSNet's (CVPR 2019), an argmax over stuff,
    instances and unknown. `heuristic`: Panoptic FPN's, the masks in the order of their scores, then the stuff; the
    semantic head then knows all things as one class, and a detection that scores just the threshold stays.
    by_class: detections of different classes do not suppress each other.
    """

    merge: Literal["logits", "heuristic"] = "logits"
    score_threshold: Annotated[float, BeforeValidator(_decisive)] = Field(0.6, ge=0.5, lt=1.0)
    nms_threshold: Share = 0.5
    by_class: bool = False
    max_detections: int = Field(100, ge=1, le=150)
    mask_overlap: Share = 0.3
    stuff_area_limit: float = Field(4096.0, ge=0)
    keep_fraction: Share = 0.7


class ModelConfig(Section):
    """`conventions`: what the weights take for granted, see training/conventions.py; imported ones need `upsnet`
    or `detectron2`. The pixels' means and deviations are theirs unless given, in RGB order."""

    conventions: ConventionsName = "ours"
    backbone: BackboneConfig = HybridConfig()
    fpn: FpnConfig = FpnConfig()
    rpn: RpnConfig = RpnConfig()
    box_head: BoxHeadConfig = BoxHeadConfig()
    mask_head: MaskHeadConfig = MaskHeadConfig()
    semantic_head: SemanticHeadConfig = SubnetConfig()
    panoptic: PanopticConfig = PanopticConfig()
    pixel_mean: tuple[float, float, float] = OURS.pixel_mean
    pixel_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = OURS.pixel_std

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, values: object) -> object:
        """A backbone is a hybrid one and a semantic head a subnet unless they say otherwise; pixels are scaled by the
        conventions. `legacy`, true or false, is what older versions called the conventions `upsnet` and `ours`."""
        if not isinstance(values, dict):
            return values
        if "legacy" in values:
            legacy, values = values["legacy"], {key: value for key, value in values.items() if key != "legacy"}
            named = {True: "upsnet", False: "ours"}[legacy] if isinstance(legacy, bool) else None
            if values.setdefault("conventions", named) != named or named is None:
                raise ValueError("legacy contradicts conventions, or is neither true nor false; leave it out")
        for part, kind in (("backbone", "hybrid"), ("semantic_head", "subnet")):
            given = values.get(part)
            if isinstance(given, dict) and "kind" not in given:
                values = values | {part: given | {"kind": kind}}
        conventions = values.get("conventions")
        own = NAMED.get(conventions, OURS) if isinstance(conventions, str) else OURS
        return {"pixel_mean": own.pixel_mean, "pixel_std": own.pixel_std} | values
