"""Which anchors and RoIs are compared with which ground truth box, and which of them a step uses.

Everything stays on the device: shapes depend on the configuration and on the number of boxes alone, which the host
knows, and no value is read back. Boxes are in the network's conventions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from training.conventions import Conventions
from training.data.sample import IGNORE
from training.losses import draws
from training.model import boxes as B
from training.model_config import BoxHeadConfig, RpnConfig

CHUNK = 1 << 16  # anchors whose overlaps are computed at once: bounds the temporaries, 270 000 anchors being usual


class RpnTargets(NamedTuple):
    """N anchors an image; rows that no anchor was found for have the label IGNORE."""

    anchors: Tensor  # B x N, index into the anchors of all levels
    labels: Tensor  # B x N: 1 object, 0 background, or IGNORE
    deltas: Tensor  # B x N x 4, of the objects; else 0


class RoiTargets(NamedTuple):
    """R RoIs an image, foreground first, then background, then padding."""

    rois: Tensor  # B x R x 4
    labels: Tensor  # B x R: 0 background, 1 + thing index, or IGNORE
    deltas: Tensor  # B x R x 4, of the foreground; else 0
    owners: Tensor  # B x R, index of the ground truth box; only the foreground's mean something


class Chosen(NamedTuple):
    indices: Tensor  # B x total
    positive: Tensor  # B x total, a prefix of each row
    used: Tensor  # B x total, a prefix of each row


def assign_anchors(
    anchors: Tensor, boxes: Sequence[Tensor], sizes: Tensor, seeds: Tensor, config: RpnConfig, conventions: Conventions
) -> RpnTargets:
    """Sample anchors [A, 4] of the images for their boxes, one [n, 4] an image (n may be 0).

    Only anchors wholly inside the unpadded image count; with `straddling` those partly inside do, too. Positive:
    IoU >= positive_iou with a box, or the highest IoU that a box has (with every anchor that ties for it). Negative:
    IoU < negative_iou with every box. The target of a positive is the box that it overlaps most (ties: the first), as
    in torchvision, also where it is positive because of another box.
    """
    limits = sizes.flip(1).to(anchors.dtype).unsqueeze(1)  # B x 1 x 2: width, height
    near, far = conventions.to_exclusive(anchors).split(2, dim=1)
    if config.straddling:
        inside = (far > 0).all(1) & (near < limits).all(2)
    else:
        inside = (near >= 0).all(1) & (far <= limits).all(2)
    matches = [match(anchors, own, within, conventions) for own, within in zip(boxes, inside, strict=True)]
    best, owner, favourite = (torch.stack(values) for values in zip(*matches, strict=True))
    positive = inside & (favourite | (best >= config.positive_iou))
    negative = inside & ~positive & (best < config.negative_iou)
    order = draws.keys(seeds, len(anchors), draws.RPN_STREAM)
    chosen = choose(positive, negative, order, config.samples, int(config.samples * config.positive_fraction))
    wanted = B.gather_rows(padded(boxes, 1), owner.gather(1, chosen.indices))
    deltas = conventions.encode(wanted, anchors[chosen.indices], B.RPN_WEIGHTS)
    labels = chosen.positive.long().masked_fill(~chosen.used, IGNORE)
    return RpnTargets(chosen.indices, labels, torch.where(chosen.positive.unsqueeze(2), deltas, 0.0))


def match(anchors: Tensor, boxes: Tensor, inside: Tensor, conventions: Conventions) -> tuple[Tensor, Tensor, Tensor]:
    """For each of the anchors [A, 4] of one image: its highest IoU with a box [n, 4], the index of that box (ties: the
    first), and whether no anchor overlaps one of the boxes more. An anchor that is not inside overlaps nothing."""
    if len(boxes) == 0:
        none = torch.zeros_like(inside)
        return none.to(anchors.dtype), none.long(), none
    iou = torch.cat([conventions.iou(part, boxes) for part in anchors.split(CHUNK)]) * inside.unsqueeze(1)
    best, owner = iou.max(dim=1)
    highest = iou.amax(dim=0)
    return best, owner, ((iou == highest) & (highest > 0)).any(1)


def assign_rois(
    proposals: Tensor,
    valid: Tensor,
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    seeds: Tensor,
    config: BoxHeadConfig,
    conventions: Conventions,
) -> RoiTargets:
    """Sample RoIs among the proposals [B, P, 4] (where `valid`) and the ground truth boxes, one [n, 4] an image.

    Foreground: IoU >= positive_iou with the box that it overlaps most (ties: the first). The rest is background. A
    proposal with a coordinate that is not finite is none: the targets' pixels are found by the coordinates of RoIs.
    """
    valid = valid & proposals.isfinite().all(2)
    proposals = proposals.where(valid.unsqueeze(2), 0.0)
    truth, counts = padded(boxes), count_boxes(boxes, proposals.device)
    real = torch.arange(truth.shape[1], device=truth.device) < counts.unsqueeze(1)
    pool, eligible = torch.cat([proposals, truth], dim=1), torch.cat([valid, real], dim=1)
    # One more column than boxes: an image without any overlaps this one alone, by 0.
    iou = F.pad(conventions.iou(pool, truth) * real.unsqueeze(1), (0, 1))
    best, owner = iou.max(dim=2)
    positive = eligible & (best >= config.positive_iou)
    order = draws.keys(seeds, pool.shape[1], draws.ROI_STREAM)
    chosen = choose(positive, eligible & ~positive, order, config.samples, foreground_rows(config))
    rois = B.gather_rows(pool, chosen.indices) * chosen.used.unsqueeze(2)
    owners = owner.gather(1, chosen.indices)
    deltas = conventions.encode(B.gather_rows(F.pad(truth, (0, 0, 0, 1)), owners), rois, B.BOX_WEIGHTS)
    things = F.pad(padded(labels), (0, 1)).gather(1, owners)
    classes = torch.where(chosen.positive, 1 + things, 0).masked_fill(~chosen.used, IGNORE)
    return RoiTargets(rois, classes, torch.where(chosen.positive.unsqueeze(2), deltas, 0.0), owners)


def foreground_rows(config: BoxHeadConfig) -> int:
    """The most foreground RoIs of an image, at least one; they are the first rows of `RoiTargets`."""
    return max(1, int(config.samples * config.positive_fraction))


def choose(positive: Tensor, negative: Tensor, order: Tensor, total: int, most_positive: int) -> Chosen:
    """`total` of the N candidates [B, N]: at most `most_positive` random positives, then random negatives.

    order: int64 [B, N] random numbers from 0 up; the highest are chosen. Where the candidates do not suffice, the
    last rows are not `used`, and their index is any valid one.
    """
    candidates = order.shape[1]
    order = F.pad(order, (0, max(0, total - candidates)), value=-1)
    positive, negative = (F.pad(mask, (0, order.shape[1] - candidates)) for mask in (positive, negative))

    def highest(mask: Tensor, count: int) -> Tensor:
        return torch.where(mask, order, -1).topk(count, dim=1).indices

    positives = positive.sum(1, keepdim=True).clamp(max=most_positive)
    negatives = negative.sum(1, keepdim=True)
    row = torch.arange(total, device=order.device).expand(len(order), -1)
    after = (row - positives).clamp(min=0)
    first = F.pad(highest(positive, most_positive), (0, total - most_positive))
    indices = torch.where(row < positives, first, highest(negative, total).gather(1, after))
    return Chosen(indices.clamp(max=candidates - 1), row < positives, row < positives + negatives)


def padded(tensors: Sequence[Tensor], least: int = 0) -> Tensor:
    """One tensor [n, ...] an image -> [B, G, ...], zeros below, G = the highest n, but at least `least`."""
    rows = max(least, *map(len, tensors))
    return torch.stack([F.pad(t, (0, 0) * (t.ndim - 1) + (0, rows - len(t))) for t in tensors])


def count_boxes(boxes: Sequence[Tensor], device: torch.device) -> Tensor:
    """int64 [B], filled in on the device: a copy of the host's would be waited for."""
    return torch.stack([torch.full((), len(own), device=device) for own in boxes])
