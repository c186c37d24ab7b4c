"""detectron2's merge at the photo's size, and where this project's merge at the network's size differs from it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plugins_cuda.panoptic_fusion.reference import bounded_logits, prune
from training.importers.arrays import NEAR_TIE, bits
from training.importers.panoptic_fpn.golden.detections import Found
from training.importers.panoptic_fpn.golden.inputs import Inputs
from training.model.upsnet import ScoredProposals, UPSNet
from training.model_config import PanopticConfig
from upsnet.geometry import to_original

SOFT = 6  # of so many detections the pasted probabilities are written
NEARLY = 0.45  # a detection with this score could decide a pixel of another run
Segment = dict[str, Any]  # as detectron2's segments_info lists them
Key = tuple[int, float]  # a contiguous category and a score, which tell segments apart


class Merged(NamedTuple):
    numbers: np.ndarray  # H x W, 0 is void
    keys: dict[int, Key]  # of the others
    arrays: dict[str, Tensor]
    segments: list[Segment]


def at_photo_size(model: UPSNet, semantic: Tensor, found: Found, image: Inputs) -> Merged:
    """semantic: logits [1 + S, h, w] at 1/4 of the padded network size, things first."""
    labels, gap, sample = _semantic(semantic, image)
    size = image.image.original
    boxes, whole = _scaled(found.boxes, image.image.size, size)
    boxes = image.stage("orig_boxes", boxes[whole], int(whole.sum()))
    scores, classes, logits = found.scores[whole], found.classes[whole], bounded_logits(found.masks[whole])
    masks, close, soft = [], gap < NEAR_TIE, []
    for row, box in enumerate(boxes):
        pasted = _paste(logits[row], box, size)
        masks.append(pasted >= 0.5)
        soft += [pasted[3::8, 3::8]] if row < SOFT else []
        if scores[row] >= NEARLY:
            close |= (pasted - 0.5).abs() < NEAR_TIE
    stack = torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.bool)
    numbers, segments = combine(stack, scores, classes, labels, model.config.panoptic)
    arrays = {
        "sem_orig_sample": sample,
        "sem_orig_argmax": labels.to(torch.uint8),
        "sem_orig_near_tie": bits(gap < NEAR_TIE),
        "orig_boxes": boxes,
        "orig_mask_bits": torch.stack([bits(mask) for mask in masks]) if masks else torch.zeros(0, 0).byte(),
        "orig_mask_area": stack.sum((1, 2), dtype=torch.int32),
        "paste_soft_sample": torch.stack(soft) if soft else torch.zeros(0, *sample.shape[1:]),
        "panoptic": numbers,
        "panoptic_near_tie": bits(close),
    }
    keys = {
        segment["id"]: (model.num_stuff + segment["category_id"], segment["score"])
        if segment["isthing"]
        else (segment["category_id"] - 1, 1.0)
        for segment in segments
    }
    return Merged(numbers.numpy(), keys, arrays, segments)


def combine(
    masks: Tensor, scores: Tensor, classes: Tensor, labels: Tensor, rules: PanopticConfig
) -> tuple[Tensor, list[Segment]]:
    """detectron2's combine_semantic_and_instance_outputs: a map uint8 [H, W], 0 void, and what its numbers are.

    masks: bool [n, H, W], scores and classes [n], in any order; of equal scores the lower row is first. labels: int64
    [H, W], 0 things, k the stuff class k - 1.
    """
    order = scores.double().argsort(descending=True, stable=True)
    order = order[scores[order].double() >= rules.score_threshold]
    kept = order[prune(masks[order], torch.zeros(len(order), dtype=torch.int64), rules.mask_overlap)]
    numbers = torch.zeros_like(labels, dtype=torch.uint8)
    segments: list[Segment] = []
    for number, row in enumerate(kept.tolist(), start=1):  # with a pixel or without
        numbers[masks[row] & (numbers == 0)] = number
        thing = {"category_id": int(classes[row]), "score": float(scores[row]), "instance_id": row}
        segments.append({"id": number, "isthing": True} | thing)
    for label in filter(None, labels.unique().tolist()):
        left = (labels == label) & (numbers == 0)
        area, number = int(left.sum()), len(segments) + 1
        if area >= rules.stuff_area_limit:
            numbers[left] = number
            segments.append({"id": number, "isthing": False, "category_id": label, "area": area})
    return numbers, segments


def _semantic(semantic: Tensor, image: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """The labels [H, W] at the photo's size, ties to the lowest; the best logit's lead; the sample of the logits.

    One channel after the other: all of them, 0.2 GB for a photo of one megapixel, never exist at once.
    """
    (height, width), size = image.image.size, image.image.original
    best, second = (torch.full(size, -torch.inf) for _ in range(2))
    labels = torch.zeros(size, dtype=torch.int64)
    samples = []
    for label, channel in enumerate(semantic):
        large = F.interpolate(channel[None, None], scale_factor=4.0, mode="bilinear", align_corners=False)
        logits = F.interpolate(large[:, :, :height, :width], size, mode="bilinear", align_corners=False)[0, 0]
        better = logits > best
        second = torch.where(better, best, torch.maximum(second, logits))
        best, labels = torch.where(better, logits, best), torch.where(better, label, labels)
        samples += [logits[3::16, 5::16]] if label % 8 == 0 else []
    return labels, best - second, torch.stack(samples)


def _scaled(boxes: Tensor, size: tuple[int, int], original: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Boxes of the network image in the photo, within it; and which have a width and a height there."""
    y, x = (large / small for large, small in zip(original, size, strict=True))
    limits = boxes.new_tensor([original[1], original[0]]).repeat(2)
    scaled = (boxes * boxes.new_tensor([x, y, x, y])).clamp(min=0).minimum(limits)
    return scaled, (scaled[:, 2:] > scaled[:, :2]).all(1)


def _paste(logits: Tensor, box: Tensor, size: tuple[int, int]) -> Tensor:
    """[H, W]: the probabilities of mask logits [M, M] in the box [4], 0 around it."""
    x, y = ((torch.arange(size[1 - axis]) + 0.5 - box[axis]) / (box[2 + axis] - box[axis]) * 2 - 1 for axis in (0, 1))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    return F.grid_sample(logits.sigmoid()[None, None], grid[None], align_corners=False)[0, 0]


def at_network_size(
    model: UPSNet, pyramid: list[Tensor], semantic: Tensor, scored: ScoredProposals, image: Inputs
) -> Merged:
    """The map of the exported graph, brought to the photo as every runtime does it."""
    found = model.select(scored)
    masks = model.mask_logits(pyramid, found)
    scales = torch.from_numpy(image.batch.scales)
    panoptic, table, count = model.fuse(semantic[None].roll(-1, 1), found, masks, image.sizes, scales)
    rows = table[0, : int(count)].tolist()
    keys = {number: (int(row[0]), row[1]) for number, row in enumerate(rows, start=1)}
    return Merged(to_original(panoptic[0].numpy(), image.image.size, image.image.original), keys, {}, [])


def differing_pixels(a: Merged, b: Merged) -> int:
    """Where one map has another category than the other, or another instance, or void."""
    names: dict[Key, int] = {}

    def named(merged: Merged) -> np.ndarray:
        table = np.zeros(256, np.int64)
        for number, key in merged.keys.items():
            table[number] = names.setdefault(key, 1 + len(names))
        return table[merged.numbers]

    return int((named(a) != named(b)).sum())
