"""What files of detectron2's Panoptic FPN hold besides what the network reads, and what tells them apart."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from training.config import Config
from training.importers.family import COUNTER, Family, Rows, Weights, check_both_kinds
from training.importers.panoptic_fpn.keys import BOTTOM_UP, RESNETS, sources
from training.model_config import TimmConfig
from upsnet.errors import InputError

SEMANTIC, BOXES = "sem_seg_head.predictor.weight", "roi_heads.box_predictor.cls_score.weight"
CONFIGS = {"resnet50": "panoptic_fpn_r50.yaml", "resnet101": "panoptic_fpn_r101.yaml"}
PIXELS = ("pixel_mean", "pixel_std")
# Buffers that files of some years hold, and that follow from the configuration.
IGNORED = re.compile(rf"proposal_generator\.anchor_generator\.cell_anchors\.\d+|pixel_mean|pixel_std|.*\.{COUNTER}")


def class_counts(weights: Weights, path: Path) -> tuple[int, int]:
    """Stuff and thing classes. InputError: it is no Panoptic FPN, or one of another kind."""
    missing = [name for name in (SEMANTIC, BOXES) if name not in weights or not weights[name].ndim]
    if missing:
        hint = "a Mask R-CNN has no semantic head" if missing == [SEMANTIC] else "cascades and others are not read"
        raise InputError(f"{path}: detectron2's, but no Panoptic FPN: lacks {' and '.join(missing)}; {hint}")
    stuff, things = len(weights[SEMANTIC]) - 1, len(weights[BOXES]) - 1
    check_both_kinds(stuff, things, "Panoptic FPN", f"{SEMANTIC} and {BOXES}", path)
    return stuff, things


def prepare(weights: Weights, settings: Config, source: Path) -> tuple[Weights, list[str]]:
    """Without the buffers that the network does not read, and with those that it reads and a file may lack.

    InputError: it is of another depth, or was trained with other pixel means, than the configuration says.
    """
    _check_depth(weights, settings, source)
    _check_pixels(weights, settings, source)
    kept = {name: tensor for name, tensor in weights.items() if not IGNORED.fullmatch(name)}
    filled, norms = _running(kept)
    lines = []
    if filled:
        which = "the backbone's" if len(filled) == len(norms) else f"{len(filled)} of the backbone's"
        lines = [
            f"{which} normalisations lack running_mean and running_var ({filled[0]} is the first): 0 and 1, as "
            "detectron2 takes them"
        ]
    return kept, lines


def _running(kept: Weights) -> tuple[list[str], list[str]]:
    """Fills in 0 and 1 where a normalisation of the backbone has neither a mean nor a variance; those, and all."""
    norms = [name.removesuffix(".weight") for name in kept if re.fullmatch(rf"{BOTTOM_UP}.*\.norm\.weight", name)]
    filled = [norm for norm in norms if not {f"{norm}.running_mean", f"{norm}.running_var"} & kept.keys()]
    for norm in filled:
        shape = kept[f"{norm}.weight"].shape
        kept |= {f"{norm}.running_mean": torch.zeros(shape), f"{norm}.running_var": torch.ones(shape)}
    return filled, norms


def _check_depth(weights: Weights, settings: Config, source: Path) -> None:
    found = tuple(_blocks(weights, stage) for stage in range(2, 6))
    name = next((name for name, blocks in RESNETS.items() if blocks == found), None)
    own = settings.model.backbone
    configured = own.name.partition(".")[0] if isinstance(own, TimmConfig) else own.kind
    if name is None or name == configured:
        return  # if no ResNet, its keys do not fit, and are named
    config = f"take training/configs/{CONFIGS[name]}, or set" if name in CONFIGS else "set"
    raise InputError(
        f"{source}: has a {name} ({found[2]} blocks in res4), and the configuration a {configured}: {config} "
        f"model.backbone.name: {name}"
    )


def _blocks(weights: Weights, stage: int) -> int:
    names = (re.match(rf"{BOTTOM_UP}res{stage}\.(\d+)\.", name) for name in weights)
    return len({match[1] for match in names if match})


def _check_pixels(weights: Weights, settings: Config, source: Path) -> None:
    for name in PIXELS:
        if name not in weights:
            continue
        own = list(getattr(settings.model, name))
        given = [round(value, 4) for value in weights[name].flatten()[:4].tolist()[::-1]]  # BGR there
        if len(given) != 3 or not all(abs(a - b) <= 1e-3 for a, b in zip(given, own, strict=True)):
            raise InputError(f"{source}: was trained with other pixels: set model.{name}: {given}, now {own} (RGB)")


PANOPTIC_FPN = Family(
    name="detectron2's Panoptic FPN",
    beginnings=("backbone.bottom_up.", "sem_seg_head.", "roi_heads.", "proposal_generator."),
    settings={
        "model.conventions": "detectron2",
        "model.semantic_head.kind": "chains",
        "model.panoptic.merge": "heuristic",
        "model.panoptic.by_class": True,
        "model.fpn.global_context": False,
        "model.fpn.upsample": "nearest",
        "model.fpn.norm": "none",
        "model.mask_head.norm": "none",
    },
    configs="training/configs/panoptic_fpn_r50.yaml or panoptic_fpn_r101.yaml",
    class_counts=class_counts,
    class_rows={
        "stuff classes": {"sem_seg_head.predictor": Rows(more=1)},
        "thing classes": {
            "roi_heads.box_predictor.cls_score": Rows(more=1),
            "roi_heads.box_predictor.bbox_pred": Rows(per_class=4),
            "roi_heads.mask_head.predictor": Rows(),
        },
    },
    prepare=prepare,
    sources=sources,
)
