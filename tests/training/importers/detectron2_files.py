"""A narrow Panoptic FPN with a whole ResNet-50, and the tensors that detectron2 would hold with its weights."""

from __future__ import annotations

import re
from typing import Any

import torch
import yaml
from torch import Tensor

from tests.training.importers.original import SPLIT
from training.config import Config, parse_config
from training.model.upsnet import UPSNet

CONFIG: dict[str, Any] = {
    "name": "narrow",
    "model": {
        "conventions": "detectron2",
        "backbone": {"kind": "timm", "name": "resnet50"},
        "fpn": {"channels": 8, "global_context": False, "upsample": "nearest"},
        "rpn": {"channels": 8, "test_top_n": 30, "train_top_n": 40},
        "box_head": {"hidden": 16},
        "mask_head": {"channels": 8},
        "semantic_head": {"kind": "chains", "channels": 8, "groups": 4},
        "panoptic": {"merge": "heuristic", "by_class": True, "score_threshold": 0.5, "mask_overlap": 0.5},
    },
    "loss": {"semantic": 0.5, "semantic_roi": 0, "panoptic": 0},
    "data": {
        "train": SPLIT,
        "val": SPLIT,
        "resize": {"short_side": 64, "max_side": 96, "rounding": "double"},
    },
    "schedule": {"iterations": 1, "images_per_step": 1},
}
STUFF, THINGS = 3, 2
TABLE = [
    *({"id": 30 + i, "name": f"stuff {i}", "isthing": 0} for i in range(STUFF)),
    *({"id": 10 + i, "name": f"thing {i}", "isthing": 1} for i in range(THINGS)),
]
NAMES = [  # our name, theirs
    (r"backbone\.network\.conv1\.", "backbone.bottom_up.stem.conv1."),
    (r"backbone\.network\.bn1\.", "backbone.bottom_up.stem.conv1.norm."),
    (r"backbone\.network\.layer1\.", "backbone.bottom_up.res2."),
    (r"backbone\.network\.layer2\.", "backbone.bottom_up.res3."),
    (r"backbone\.network\.layer3\.", "backbone.bottom_up.res4."),
    (r"backbone\.network\.layer4\.", "backbone.bottom_up.res5."),
    (r"downsample\.0\.", "shortcut."),
    (r"downsample\.1\.", "shortcut.norm."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    *((rf"fpn\.lateral\.{i}\.", f"backbone.fpn_lateral{i + 2}.") for i in range(4)),
    *((rf"fpn\.smooth\.{i}\.", f"backbone.fpn_output{i + 2}.") for i in range(4)),
    (r"rpn\.conv\.", "proposal_generator.rpn_head.conv."),
    (r"rpn\.logits\.", "proposal_generator.rpn_head.objectness_logits."),
    (r"rpn\.deltas\.", "proposal_generator.rpn_head.anchor_deltas."),
    (r"^box_head\.fc6\.", "roi_heads.box_head.fc1."),
    (r"^box_head\.fc7\.", "roi_heads.box_head.fc2."),
    (r"^box_head\.logits\.", "roi_heads.box_predictor.cls_score."),
    (r"^box_head\.deltas\.", "roi_heads.box_predictor.bbox_pred."),
    *((rf"^mask_head\.convs\.{i}\.", f"roi_heads.mask_head.mask_fcn{i + 1}.") for i in range(4)),
    (r"^mask_head\.deconv\.", "roi_heads.mask_head.deconv."),
    (r"^mask_head\.score\.", "roi_heads.mask_head.predictor."),
    *(
        (rf"semantic_head\.chains\.{level}\.{i}\.{part}", f"sem_seg_head.p{level + 2}.{2 * i}.{name}")
        for level in range(4)
        for i in range(3)
        for part, name in (("conv.", ""), ("norm.", "norm."))
    ),
    (r"semantic_head\.score\.", "sem_seg_head.predictor."),
]


def config(**changes: object) -> Config:
    """`changes`: sections of the model's configuration."""
    return parse_config(CONFIG | {"model": CONFIG["model"] | changes}, "narrow")


def config_text(**changes: object) -> str:
    return yaml.safe_dump(CONFIG | {"model": CONFIG["model"] | changes})


def network() -> UPSNet:
    """Its zero rows, of the background's boxes and masks, are zero, and its normalisations do something."""
    torch.manual_seed(3)
    model = UPSNet(config().model, STUFF, THINGS)
    for name, tensor in model.state_dict().items():
        if "bn" in name or "norm" in name or "downsample.1" in name:
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
        elif name.endswith(".bias"):
            tensor.normal_()
    for module in (model.box_head.deltas, model.mask_head.score):
        rows = len(module.weight) // (1 + THINGS)
        with torch.no_grad():
            module.weight[:rows], module.bias[:rows] = 0, 0  # type: ignore[index]
    return model.eval()


def theirs(model: UPSNet) -> dict[str, Tensor]:
    """What detectron2 would hold: BGR, things before the stuff, the background last or absent."""
    weights = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        if name == "backbone.network.conv1.weight":
            tensor = tensor[:, [2, 1, 0]]
        elif name.startswith("semantic_head.score."):
            tensor = torch.stack([tensor[STUFF], *tensor[:STUFF]])
        elif name.startswith("box_head.logits."):
            tensor = torch.stack([*tensor[1:], tensor[0]])
        elif name.startswith("box_head.deltas."):
            tensor = tensor[4:]
        elif name.startswith("mask_head.score."):
            tensor = tensor[1:]
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        weights[name] = tensor.clone()
    return weights
