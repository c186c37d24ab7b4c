"""Names of the original UPSNet's tensors and of ours, both ways from one table of modules."""

from __future__ import annotations

from torch import nn

from training.importers.family import resnet_blocks, their_names
from training.model.heads import SemanticHead
from training.model.upsnet import UPSNet
from training.model_config import HybridConfig, TimmConfig
from upsnet.errors import InputError

BLOCK_PARTS = {
    "hybrid": ("expand_conv", "bn0", "dw_conv", "bn1", "project_conv", "bn2"),
    "resnet": ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "downsample.0", "downsample.1"),
}
RESNETS = ("resnet50", "resnet101", "resnet152")
FIRST_CONV = "resnet_backbone.conv1.conv1.weight"  # reads the image, there in BGR


def original_names(model: UPSNet) -> dict[str, str]:
    """Every key of `model`'s state_dict -> the key that the original has for it; each of these occurs once.

    InputError: a backbone that the original does not have.
    """
    return their_names(model, modules(model))


def modules(model: UPSNet) -> dict[str, str]:
    """Our modules that hold tensors -> the original's."""
    semantic = model.semantic_head
    assert isinstance(semantic, SemanticHead)  # Family.check
    levels, layers = range(4), range(len(model.mask_head.convs))
    return {
        **_backbone(model),
        **{f"fpn.lateral.{i}": f"fpn.fpn_p{i + 2}_1x1" for i in levels},
        **{f"fpn.smooth.{i}": f"fpn.fpn_p{i + 2}" for i in levels},
        "fpn.context": "fpn.fpn_gap",
        "rpn.conv": "rpn.conv_proposal.0",
        "rpn.logits": "rpn.cls_score",
        "rpn.deltas": "rpn.bbox_pred",
        "box_head.fc6": "rcnn.fc6.0",
        "box_head.fc7": "rcnn.fc7.0",
        "box_head.logits": "rcnn.cls_score",
        "box_head.deltas": "rcnn.bbox_pred",
        **{f"mask_head.convs.{i}": f"mask_branch.mask_conv{i + 1}.0" for i in layers},
        "mask_head.deconv": "mask_branch.mask_deconv1.0",
        "mask_head.score": "mask_branch.mask_score",
        **{
            f"semantic_head.convs.{i}{part}": f"fcn_head.fcn_subnet.conv.{i}.0.{name}"
            for i in range(len(semantic.convs))
            for part, name in (("", "conv"), (".conv_offset", "conv_offset"))
        },
        "semantic_head.score": "fcn_head.score",
    }


def _backbone(model: UPSNet) -> dict[str, str]:
    theirs = "resnet_backbone"
    config = model.config.backbone
    if isinstance(config, HybridConfig):
        stem = {"stem.0": "conv1.conv1", "stem.1": "conv1.bn1", "stem.3": "conv1.conv2", "stem.4": "conv1.bn2"}
        blocks = {
            f"stages.{stage}.{block}.{part}": f"res{stage + 2}.{block}.{part}"
            for stage, depth in enumerate(config.depths)
            for block in range(depth)
            for part in BLOCK_PARTS["hybrid"]
        }
        return {f"backbone.{own}": f"{theirs}.{name}" for own, name in (stem | blocks).items()}
    name = config.name if isinstance(config, TimmConfig) else config.kind
    if name.partition(".")[0] not in RESNETS:  # after the dot: whose pretrained weights
        raise InputError(f"backbone {name}: the original UPSNet lacks it; use {', '.join(RESNETS)}, hybrid")
    network = model.backbone.network
    assert isinstance(network, nn.Module)
    names = {"conv1": "conv1.conv1", "bn1": "conv1.bn1"}
    for own, stage, block in resnet_blocks(network):
        name = f"res{stage}.layers.{block}"
        names |= {f"{own}.{part}": f"{name}.{part}" for part in BLOCK_PARTS["resnet"]}
        names[f"{own}.conv2.conv_offset"] = f"{name}.conv2_offset"
    return {f"backbone.network.{own}": f"{theirs}.{name}" for own, name in names.items()}
