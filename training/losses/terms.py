"""The terms of the loss as functions of predictions and targets: float32, each the mean over the images of a mean."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from plugins_cuda.panoptic_fusion.reference import mask_terms
from training.conventions import Conventions
from training.data.sample import IGNORE
from training.losses.assign import RoiTargets, RpnTargets
from training.model.boxes import BOX_WEIGHTS, gather_rows
from training.model_config import BoxHeadConfig

EMPTY = 1e-7  # square pixels, beside areas that may be 0


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


def box_losses(
    logits: Tensor, deltas: Tensor, targets: RoiTargets, config: BoxHeadConfig, conventions: Conventions
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of logits [B * R, 1 + T]; the configured regression of deltas [B * R, 1 + T, 4] on the foreground's
    own class. Both are divided by the image's number of RoIs."""
    used = targets.labels != IGNORE
    foreground = used & (targets.labels > 0)
    count = used.sum(1).clamp(min=1)
    entropy = F.cross_entropy(logits, targets.labels.flatten(), ignore_index=IGNORE, reduction="none").view_as(used)
    channel = torch.where(foreground, targets.labels, 0).reshape(-1, 1, 1).expand(-1, 1, 4)
    own = deltas.gather(1, channel).reshape(targets.deltas.shape)
    if config.regression == "giou":
        found, wanted = (conventions.decode(each, targets.rois, BOX_WEIGHTS) for each in (own, targets.deltas))
        moved = 1 - generalised_iou(found, wanted, conventions)
    else:
        moved = F.smooth_l1_loss(own, targets.deltas, beta=config.beta, reduction="none").sum(2)
    return (entropy.sum(1) / count).mean(), ((moved * foreground).sum(1) / count).mean()


def generalised_iou(a: Tensor, b: Tensor, conventions: Conventions) -> Tensor:
    """[...], -1 to 1, of boxes [..., 4] with boxes [..., 4] (Rezatofighi et al., CVPR 2019). Where both are empty it is
    0, and its gradient is finite.

    torchvision's has the same values, but on a GPU its mask as an index would be waited for.
    """
    (near_a, far_a), (near_b, far_b) = (conventions.to_exclusive(each).split(2, dim=-1) for each in (a, b))
    shared = _area((torch.minimum(far_a, far_b) - torch.maximum(near_a, near_b)).clamp(min=0))
    union = _area(far_a - near_a) + _area(far_b - near_b) - shared
    hull = _area(torch.maximum(far_a, far_b) - torch.minimum(near_a, near_b))
    return shared / (union + EMPTY) - (hull - union) / (hull + EMPTY)


def _area(sides: Tensor) -> Tensor:
    """[...] of widths and heights [..., 2]. The gradient of Tensor.prod counts zeros on the host, which waits."""
    return sides[..., 0] * sides[..., 1]


def mask_loss(logits: Tensor, masks: Tensor, foreground: Tensor) -> Tensor:
    """Binary cross-entropy of logits [B, F, M, M] over the pixels of the foreground RoIs [B, F]."""
    entropy = F.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean((2, 3))
    return _foreground_mean(entropy, foreground)


def dice_loss(logits: Tensor, masks: Tensor, foreground: Tensor) -> Tensor:
    """1 - dice of the probabilities with the masks, 2 sum(p g) / (sum(p^2) + sum(g^2)) (Milletari et al., 3DV 2016), of
    logits [B, F, M, M] in the foreground RoIs [B, F]. Both sums have one pixel more: an empty mask that is found to be
    empty is no loss."""
    found = logits.sigmoid()
    shared, total = (found * masks).sum((2, 3)), (found.square() + masks.square()).sum((2, 3))
    return _foreground_mean(1 - (2 * shared + 1) / (total + 1), foreground)


def _foreground_mean(values: Tensor, foreground: Tensor) -> Tensor:
    """Of values [B, F] where `foreground`, image by image; 0 for an image without."""
    return ((values * foreground).sum(1) / foreground.sum(1).clamp(min=1)).mean()


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
