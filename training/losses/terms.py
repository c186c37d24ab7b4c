"""The terms of the loss as functions of predictions and targets: float32, each the mean over the images of a mean."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from plugins_cuda.panoptic_fusion.reference import mask_terms
from training.data.sample import IGNORE
from training.losses.assign import RoiTargets, RpnTargets
from training.model.boxes import gather_rows


def rpn_losses(logits: Tensor, deltas: Tensor, targets: RpnTargets, beta: float = 1 / 9) -> tuple[Tensor, Tensor]:
    """Objectness and box loss of logits [B, A] and deltas [B, A, 4], both divided by the number of sampled anchors.
    beta: see `RpnConfig`."""
    used, positive = targets.labels != IGNORE, targets.labels == 1
    count = used.sum(1).clamp(min=1)
    objectness = F.binary_cross_entropy_with_logits(
        logits.gather(1, targets.anchors), positive.to(logits.dtype), reduction="none"
    )
    own = gather_rows(deltas, targets.anchors)
    moved = F.smooth_l1_loss(own, targets.deltas, beta=beta, reduction="none").sum(2)
    return ((objectness * used).sum(1) / count).mean(), ((moved * positive).sum(1) / count).mean()


def box_losses(logits: Tensor, deltas: Tensor, targets: RoiTargets, beta: float = 1.0) -> tuple[Tensor, Tensor]:
    """Cross-entropy of logits [B * R, 1 + T]; smooth L1 of deltas [B * R, 1 + T, 4] on the foreground's own class.
    Both are divided by the image's number of RoIs. beta: see `BoxHeadConfig`."""
    used = targets.labels != IGNORE
    foreground = used & (targets.labels > 0)
    count = used.sum(1).clamp(min=1)
    entropy = F.cross_entropy(logits, targets.labels.flatten(), ignore_index=IGNORE, reduction="none").view_as(used)
    channel = torch.where(foreground, targets.labels, 0).reshape(-1, 1, 1).expand(-1, 1, 4)
    own = deltas.gather(1, channel).reshape(targets.deltas.shape)
    moved = F.smooth_l1_loss(own, targets.deltas, beta=beta, reduction="none").sum(2)
    return (entropy.sum(1) / count).mean(), ((moved * foreground).sum(1) / count).mean()


def mask_loss(logits: Tensor, masks: Tensor, foreground: Tensor) -> Tensor:
    """Binary cross-entropy of logits [B, F, M, M] over the pixels of the foreground RoIs [B, F]."""
    entropy = F.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean((2, 3))
    return ((entropy * foreground).sum(1) / foreground.sum(1).clamp(min=1)).mean()


def crop_loss(logits: Tensor, labels: Tensor, counts: list[int]) -> Tensor:
    """Cross-entropy of crops [N, C, M, M] with labels [N, M, M]; counts: how many of them each image has, in order."""
    summed = F.cross_entropy(logits, labels.long(), ignore_index=IGNORE, reduction="none").sum((1, 2)).split(counts)
    labelled = (labels != IGNORE).sum((1, 2)).split(counts)
    return torch.stack([a.sum() / b.sum().clamp(min=1) for a, b in zip(summed, labelled, strict=True)]).mean()


def panoptic_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits [B, N, h, w] over each image's labelled pixels."""
    summed = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none").sum((1, 2))
    return (summed / (labels != IGNORE).sum((1, 2)).clamp(min=1)).mean()


def panoptic_logits(
    semantic: Tensor, boxes: Tensor, labels: Tensor, masks: Tensor, kept: Tensor, num_stuff: int
) -> Tensor:
    """[stuff | K instances | unknown] logits [B, S + K + 1, h, w] at the resolution of `semantic` [B, S + T, h, w].

    boxes [B, K, 4] inclusive corners at that resolution, labels [B, K] thing index, masks [B, K, M, M] logits. Where an
    instance is not `kept` [B, K] (padding) its logit is -inf. An image's logits are those that
    plugins_cuda.panoptic_fusion.reference defines for inference.
    """
    batch, _, height, width = semantic.shape
    stuff, unknown = semantic[:, :num_stuff], semantic[:, num_stuff:].amax(dim=1, keepdim=True)
    if kept.shape[1] == 0:
        return torch.cat([stuff, unknown], dim=1)
    image, real = torch.arange(batch, device=semantic.device).unsqueeze(1), kept[:, :, None, None]
    segments = torch.where(box_support(boxes, height, width), semantic[image, num_stuff + labels], 0.0)
    instances = segments + mask_terms(masks.flatten(0, 1), boxes.flatten(0, 1), height, width).view_as(segments)
    highest = segments.masked_fill(~real, -torch.inf).amax(dim=1, keepdim=True)
    unknown = unknown - torch.where(real.any(dim=1, keepdim=True), highest, 0.0)
    return torch.cat([stuff, instances.masked_fill(~real, -torch.inf), unknown], dim=1)


def box_support(boxes: Tensor, height: int, width: int) -> Tensor:
    """bool [B, K, h, w]: rows int(y1)..round(y2) (inclusive; half to even) of boxes [B, K, 4], likewise columns."""
    first, last = boxes[..., :2].trunc().unsqueeze(3), boxes[..., 2:].round().unsqueeze(3)
    column, row = (torch.arange(length, device=boxes.device) for length in (width, height))
    columns = (column >= first[:, :, 0]) & (column <= last[:, :, 0])
    rows = (row >= first[:, :, 1]) & (row <= last[:, :, 1])
    return rows.unsqueeze(3) & columns.unsqueeze(2)
