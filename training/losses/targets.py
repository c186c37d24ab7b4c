"""The targets of the heads, cut from the ground truth maps on the device without a mask for each instance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.batch import Batch
from training.data.sample import IGNORE
from training.losses import draws
from training.losses.assign import RoiTargets, RpnTargets, count_boxes, padded
from training.losses.semantic import STRIDE
from training.model.boxes import gather_rows
from training.model.heads import MASK_SIZE

SAMPLES = 2  # a bin of a mask target, in each direction


class PanopticTargets(NamedTuple):
    """The K instances of an image that are kept, and the labels of its pixels at quarter resolution."""

    boxes: Tensor  # B x K x 4, the network's conventions
    labels: Tensor  # B x K, thing index
    kept: Tensor  # B x K: False in the padding
    pixels: Tensor  # B x h x w: stuff, num_stuff + k for kept instance k, num_stuff + K unknown, or IGNORE


class Targets(NamedTuple):
    """Everything that the predictions of a batch are compared with. N: the ground truth boxes of all its images."""

    rpn: RpnTargets
    rois: RoiTargets
    masks: Tensor  # B x F x 28 x 28, 0 or 1, of the first F RoIs; background's mean nothing
    crops: Tensor  # N x 28 x 28, semantic labels inside the ground truth boxes
    panoptic: PanopticTargets


def mask_targets(instances: Tensor, rois: Tensor, owners: Tensor) -> Tensor:
    """The masks of instances [B, H, W] number 1 + owners [B, R], cut out by rois [B, R, 4] -> {0, 1} [B, R, 28, 28].

    A bin belongs to the instance when its RoIAlign (half-pixel, 2 x 2 samples a bin) on the instance's mask is at least
    one half. The sampling is that of the features; a number of samples that grows with the RoI, as Detectron2 has it,
    would make the amount of work depend on the data and changes few bins, at the outlines of large instances.
    """
    image = torch.arange(len(instances), device=instances.device)[:, None, None, None]
    y, wy = sampling(rois[..., 1], rois[..., 3], instances.shape[1])
    x, wx = sampling(rois[..., 0], rois[..., 2], instances.shape[2])
    hits = instances[image, y.unsqueeze(3), x.unsqueeze(2)] == 1 + owners[:, :, None, None]
    rows = (hits * wy.unsqueeze(3)).unflatten(2, (MASK_SIZE, -1)).sum(3)
    covered = (rows * wx.unsqueeze(2)).unflatten(3, (MASK_SIZE, -1)).sum(4)
    return (covered >= 0.5).to(rois.dtype)


def sampling(low: Tensor, high: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Along one axis of a map, for intervals low..high [B, R]: the pixels that each of the 28 bins reads, one bin after
    the other, and their weights in its mean; both [B, R, 28 * k]. Bilinear; zero more than one pixel outside, and
    for an end that is not finite."""
    place = (torch.arange(MASK_SIZE * SAMPLES, device=low.device, dtype=low.dtype) + 0.5) / (MASK_SIZE * SAMPLES)
    at = (low.unsqueeze(2) + place * (high - low).unsqueeze(2) - 0.5).nan_to_num(nan=-2.0)
    counts = (at >= -1) & (at <= length)
    at = at.clamp(0, length - 1)
    near = at.floor()
    pixels = torch.stack([near, (near + 1).clamp(max=length - 1)], dim=3)
    weights = torch.stack([near + 1 - at, at - near], dim=3) * counts.unsqueeze(3) / SAMPLES
    return pixels.long().flatten(2), weights.flatten(2)


def with_image(boxes: Sequence[Tensor]) -> Tensor:
    """One [n, 4] an image -> [N, 5], the index of the image first."""
    return torch.cat([F.pad(own, (1, 0), value=float(index)) for index, own in enumerate(boxes)])


def crop_labels(semantic: Tensor, boxes: Tensor) -> Tensor:
    """Labels [N, 28, 28] of the maps [B, H, W] at the bin centres of boxes [N, 5] (image, x1, y1, x2, y2)."""
    height, width = semantic.shape[1:]
    centres = (torch.arange(MASK_SIZE, device=boxes.device) + 0.5) / MASK_SIZE
    x = boxes[:, 1:2] + centres * (boxes[:, 3:4] - boxes[:, 1:2])
    y = boxes[:, 2:3] + centres * (boxes[:, 4:5] - boxes[:, 2:3])
    x, y = x.long().clamp(0, width - 1), y.long().clamp(0, height - 1)
    return semantic[boxes[:, 0].long()[:, None, None], y.unsqueeze(2), x.unsqueeze(1)]


def things_as_one(semantic: Tensor, num_stuff: int) -> Tensor:
    """Labels uint8 in which every thing has the label num_stuff, as the heuristic merge's semantic head knows them."""
    return torch.where(semantic == IGNORE, semantic, semantic.clamp(max=num_stuff))


def panoptic_targets(batch: Batch, boxes: Sequence[Tensor], keep: float, num_stuff: int) -> PanopticTargets:
    """Keep round(keep * n) random instances of each image, whose `boxes` are in the network's conventions."""
    every, device = padded(boxes), batch.instances.device
    present = torch.arange(every.shape[1], device=device) < count_boxes(boxes, device).unsqueeze(1)
    kept = padded([torch.ones(round(keep * len(own)), dtype=torch.bool, device=device) for own in boxes])
    order = draws.keys(batch.seeds, every.shape[1], draws.PANOPTIC_STREAM)
    chosen = torch.where(present, order, -1).topk(kept.shape[1], dim=1).indices
    return PanopticTargets(
        gather_rows(every, chosen) * kept.unsqueeze(2),
        padded(batch.labels).gather(1, chosen) * kept,
        kept,
        panoptic_pixels(batch.semantic, batch.instances, torch.where(kept, chosen, -1), every.shape[1], num_stuff),
    )


def panoptic_pixels(semantic: Tensor, instances: Tensor, chosen: Tensor, most: int, num_stuff: int) -> Tensor:
    """Labels int64 [B, H/4, W/4]: stuff, num_stuff + k on instance number 1 + chosen[b, k], num_stuff + K on all other
    things, or IGNORE.

    semantic uint8 and instances int16 [B, H, W], instances from 0 to `most`; chosen int64 [B, K], -1 in the padding.
    """
    labels, numbers = (maps[:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE].long() for maps in (semantic, instances))
    batch, unknown = len(chosen), num_stuff + chosen.shape[1]
    labels = torch.where((labels >= num_stuff) & (labels != IGNORE), unknown, labels)
    ranks = torch.arange(num_stuff, unknown, device=labels.device).expand(batch, -1)
    # The label of each instance's number; the padding writes to 0, no instance, which is cleared.
    table = torch.full((batch, 1 + most), -1, device=labels.device).scatter(1, 1 + chosen, ranks)
    table[:, 0] = -1
    own = table.gather(1, numbers.flatten(1)).view_as(numbers)
    return torch.where(own >= 0, own, labels)
