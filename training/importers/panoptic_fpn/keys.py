"""Names and order of the tensors of detectron2's Panoptic FPN, and of ours.

Its layers have the background last, or no row for it; ours have it first. Its semantic channels begin with all things
as one, ours end with it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.importers.family import RGB, SAME, Change, Source, resnet_blocks, their_names
from training.model.chains import ChainsHead
from training.model.upsnet import UPSNet
from training.model_config import TimmConfig
from upsnet.errors import InputError

BOTTOM_UP = "backbone.bottom_up."
RESNETS = {  # blocks in res2 .. res5
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
BLOCK_PARTS = {
    **{f"{kind}{i}": name for i in (1, 2, 3) for kind, name in (("conv", f"conv{i}"), ("bn", f"conv{i}.norm"))},
    **{"downsample.0": "shortcut", "downsample.1": "shortcut.norm"},
}


def background_first(tensor: Tensor) -> Tensor:
    return tensor.roll(1, 0)


def things_last(tensor: Tensor) -> Tensor:
    return tensor.roll(-1, 0)


def with_background(rows: int) -> Change:
    """The background gets `rows` of zeros: the network never reads them."""

    def apply(tensor: Tensor) -> Tensor:
        return torch.cat([tensor.new_zeros(rows, *tensor.shape[1:]), tensor])

    return Change(apply, rows)


CHANGES = {  # of modules of ours; all others are the same
    "box_head.logits": Change(background_first),
    "box_head.deltas": with_background(4),
    "mask_head.score": with_background(1),
    "semantic_head.score": Change(things_last),
    "backbone.network.conv1": RGB,
}


def sources(model: UPSNet) -> dict[str, Source]:
    """Every key of `model`'s state_dict -> where it comes from. InputError: a backbone that they have not."""
    names = their_names(model, modules(model))
    return {key: Source(name, CHANGES.get(key.rpartition(".")[0], SAME)) for key, name in names.items()}


def modules(model: UPSNet) -> dict[str, str]:
    """Our modules that hold tensors -> theirs."""
    levels, layers = range(4), range(len(model.mask_head.convs))
    return {
        **_backbone(model),
        **{f"fpn.lateral.{i}": f"backbone.fpn_lateral{i + 2}" for i in levels},
        **{f"fpn.smooth.{i}": f"backbone.fpn_output{i + 2}" for i in levels},
        "rpn.conv": "proposal_generator.rpn_head.conv",
        "rpn.logits": "proposal_generator.rpn_head.objectness_logits",
        "rpn.deltas": "proposal_generator.rpn_head.anchor_deltas",
        "box_head.fc6": "roi_heads.box_head.fc1",
        "box_head.fc7": "roi_heads.box_head.fc2",
        "box_head.logits": "roi_heads.box_predictor.cls_score",
        "box_head.deltas": "roi_heads.box_predictor.bbox_pred",
        **{f"mask_head.convs.{i}": f"roi_heads.mask_head.mask_fcn{i + 1}" for i in layers},
        "mask_head.deconv": "roi_heads.mask_head.deconv",
        "mask_head.score": "roi_heads.mask_head.predictor",
        **_semantic_head(model),
    }


def _semantic_head(model: UPSNet) -> dict[str, str]:
    head = model.semantic_head
    assert isinstance(head, ChainsHead)  # Family.check
    names = {"semantic_head.score": "sem_seg_head.predictor"}
    for level, chain in enumerate(head.chains):
        for i in range(len(chain)):  # type: ignore[arg-type]
            own, name = f"semantic_head.chains.{level}.{i}", f"sem_seg_head.p{level + 2}.{2 * i}"
            names |= {f"{own}.conv": name, f"{own}.norm": f"{name}.norm"}  # every second module is an upsampling
    return names


def _backbone(model: UPSNet) -> dict[str, str]:
    config = model.config.backbone
    name = config.name.partition(".")[0] if isinstance(config, TimmConfig) else config.kind
    if name not in RESNETS or (isinstance(config, TimmConfig) and config.deformable_stages):
        raise InputError(
            f"backbone {name}: no Panoptic FPN of detectron2 has it, or with deformable convolutions; use "
            f"{', '.join(RESNETS)}"
        )
    network = model.backbone.network
    assert isinstance(network, nn.Module)
    names = {"conv1": "stem.conv1", "bn1": "stem.conv1.norm"}
    for own, stage, block in resnet_blocks(network):
        names |= {f"{own}.{part}": f"res{stage}.{block}.{name}" for part, name in BLOCK_PARTS.items()}
    return {f"backbone.network.{own}": f"{BOTTOM_UP}{theirs}" for own, theirs in names.items()}
