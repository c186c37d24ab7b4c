"""All losses of UPSNet (Xiong et al., CVPR 2019, section 3.3) for one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou, roi_align

from plugins_cuda.panoptic_fusion.reference import mask_terms, segment_term
from training.config import LossConfig
from training.data.batch import IGNORE, Batch
from training.model import boxes as B
from training.model.heads import BOX_POOL, MASK_POOL, MASK_SIZE
from training.model.upsnet import PYRAMID_LEVELS, UPSNet, inclusive

STRIDE = 4  # of the semantic logits


class Sampled(NamedTuple):
    """RoIs drawn for the box and mask heads: fixed-size, positives first, padding has label IGNORE."""

    rois: Tensor  # B x R x 4
    labels: Tensor  # B x R: 0 background, 1 + thing index, or IGNORE
    targets: Tensor  # B x R x 4, encoded deltas of the positives
    matched: list[Tensor]  # for each image the ground truth index of each positive


class TrainingLosses(nn.Module):
    """Wraps a network; forward(batch) -> its weighted losses by name, those of weight 0 left out. Minimise their sum.

    Every parameter takes part in every step, also when no image of the batch has an instance.
    """

    def __init__(self, model: UPSNet, config: LossConfig) -> None:
        super().__init__()
        self.model = model
        self.weights = config

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        model = self.model
        pyramid = model.pyramid(batch.images, batch.sizes)
        proposed = model.rpn(pyramid)
        rpn_cls, rpn_box = model.rpn.losses(proposed, batch.sizes, batch.boxes)
        with torch.no_grad():
            proposals, valid = model.rpn.propose(proposed, batch.sizes, model.config.rpn.train_top_n)
            sampled = self.sample_rois(proposals, valid, batch.boxes, batch.labels)
        rcnn_cls, rcnn_box = self.box_losses(pyramid, sampled)
        semantic = model.semantic_head(pyramid[:PYRAMID_LEVELS])
        losses = {
            "rpn_cls": rpn_cls,
            "rpn_box": rpn_box,
            "rcnn_cls": rcnn_cls,
            "rcnn_box": rcnn_box,
            "mask": self.mask_loss(pyramid, sampled, instance_masks(batch)),
            "semantic": self.weights.semantic * self.semantic_loss(semantic, batch.semantic.long()),
        }
        if self.weights.semantic_roi:
            losses["semantic_roi"] = self.weights.semantic_roi * self.semantic_roi_loss(semantic, batch)
        if self.weights.panoptic:
            losses["panoptic"] = self.weights.panoptic * self.panoptic_loss(pyramid, semantic, batch)
        return losses

    def sample_rois(
        self, proposals: Tensor, valid: Tensor, boxes: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> Sampled:
        """Draw RoIs among the proposals and the ground truth boxes: IoU >= positive_iou is foreground."""
        config = self.model.config.box_head
        batch, total = len(boxes), config.samples
        rois = proposals.new_zeros(batch, total, 4)
        targets = proposals.new_zeros(batch, total, 4)
        classes = torch.full((batch, total), IGNORE, dtype=torch.long, device=proposals.device)
        matched = []
        for i in range(batch):
            pool = torch.cat([proposals[i][valid[i]], boxes[i]])
            if len(boxes[i]):
                best, owner = box_iou(pool, boxes[i]).max(dim=1)
            else:
                best, owner = pool.new_zeros(len(pool)), torch.zeros(len(pool), dtype=torch.long, device=pool.device)
            positive = best >= config.positive_iou
            pos, neg = B.sample(positive, ~positive, total, config.positive_fraction)
            chosen = torch.cat([pos, neg])
            rois[i, : len(chosen)] = pool[chosen]
            classes[i, : len(chosen)] = 0
            classes[i, : len(pos)] = 1 + labels[i][owner[pos]]
            targets[i, : len(pos)] = B.encode(boxes[i][owner[pos]], pool[pos], B.BOX_WEIGHTS)
            matched.append(owner[pos])
        return Sampled(rois, classes, targets, matched)

    def box_losses(self, pyramid: list[Tensor], sampled: Sampled) -> tuple[Tensor, Tensor]:
        """Cross-entropy over the RoIs; smooth L1 on the foreground's own class, divided by the number of RoIs."""
        logits, deltas = self.model.box_head(self.model.roi_features(pyramid, sampled.rois, BOX_POOL))
        labels = sampled.labels.flatten()
        classification = F.cross_entropy(logits, labels, ignore_index=IGNORE)
        foreground = ((labels > 0) & (labels != IGNORE)).nonzero().squeeze(1)
        own = deltas[foreground, labels[foreground]]
        regression = F.smooth_l1_loss(own, sampled.targets.flatten(0, 1)[foreground], beta=1.0, reduction="sum")
        return classification, regression / (labels != IGNORE).sum()

    def mask_loss(self, pyramid: list[Tensor], sampled: Sampled, masks: Sequence[Tensor]) -> Tensor:
        """Binary cross-entropy on the 28x28 logits of each foreground RoI's class; 0 when there is none."""
        most = max(1, *(len(m) for m in sampled.matched))
        rois, labels = sampled.rois[:, :most], sampled.labels[:, :most]
        foreground = ((labels > 0) & (labels != IGNORE)).flatten()
        thing = torch.where(foreground, labels.flatten() - 1, 0)
        logits = self.model.mask_head(self.model.roi_features(pyramid, rois, MASK_POOL), thing)
        if not foreground.any():
            return logits.sum() * 0.0
        targets = torch.cat(
            [
                mask_targets(masks[i][matched], rois[i, : len(matched)])
                for i, matched in enumerate(sampled.matched)
                if len(matched)
            ]
        )
        return F.binary_cross_entropy_with_logits(logits[foreground], targets)

    def semantic_loss(self, semantic: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy at full network resolution; void, crowds and padding are ignored."""
        full = F.interpolate(semantic, scale_factor=float(STRIDE), mode="bilinear", align_corners=False)
        return masked_cross_entropy(full, target)

    def semantic_roi_loss(self, semantic: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy on 28x28 crops at the ground truth boxes.

        The paper crops the features and scores the crops. A 1x1 convolution and bilinear sampling inside the map
        commute, so cropping the logits gives the same with a fraction of the work.
        """
        crops = roi_align(semantic, list(batch.boxes), MASK_SIZE, 1 / STRIDE, sampling_ratio=2, aligned=True)
        targets = [crop_labels(labels, boxes) for labels, boxes in zip(batch.semantic.long(), batch.boxes, strict=True)]
        return masked_cross_entropy(crops, torch.cat(targets))

    def panoptic_loss(self, pyramid: list[Tensor], semantic: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy of the panoptic logits at quarter resolution, a mean over the images.

        A random `keep_fraction` of the ground truth instances is kept; the pixels of the others are the unknown class.
        """
        keep = self.model.config.panoptic.keep_fraction
        kept = [torch.randperm(len(b), device=b.device)[: round(len(b) * keep)].sort().values for b in batch.boxes]
        most = max(len(k) for k in kept)
        masks = semantic.new_zeros(len(kept), most, MASK_SIZE, MASK_SIZE)
        if most:
            boxes = torch.stack([F.pad(b[k], (0, 0, 0, most - len(k))) for b, k in zip(batch.boxes, kept, strict=True)])
            labels = torch.stack([F.pad(c[k], (0, most - len(k))) for c, k in zip(batch.labels, kept, strict=True)])
            logits = self.model.mask_head(self.model.roi_features(pyramid, boxes, MASK_POOL), labels.flatten())
            masks = logits.reshape(masks.shape)
        total = semantic.new_zeros(())
        for i, k in enumerate(kept):
            boxes = inclusive(batch.boxes[i][k]) / STRIDE
            logits = panoptic_logits(
                semantic[i], boxes, batch.labels[i][k], masks[i, : len(k)], self.model.num_stuff
            )
            target = panoptic_target(batch.semantic[i].long(), masks_of(batch, i), k, self.model.num_stuff)
            total = total + masked_cross_entropy(logits.unsqueeze(0), target.unsqueeze(0))
        return total / len(kept)


def masks_of(batch: Batch, image: int) -> Tensor:
    """The instances' masks, bool [n, H, W]."""
    numbers = torch.arange(1, 1 + len(batch.boxes[image]), device=batch.instances.device)
    return batch.instances[image] == numbers[:, None, None]


def instance_masks(batch: Batch) -> list[Tensor]:
    return [masks_of(batch, image) for image in range(len(batch.boxes))]


def panoptic_logits(semantic: Tensor, boxes: Tensor, labels: Tensor, masks: Tensor, num_stuff: int) -> Tensor:
    """[stuff | one an instance | unknown] logits of one image at the resolution of `semantic` [S + T, h, w].

    boxes [n, 4] inclusive corners at that resolution, labels [n] thing index, masks [n, M, M] logits.
    """
    height, width = semantic.shape[1:]
    unknown = semantic[num_stuff:].amax(dim=0, keepdim=True)
    if len(labels) == 0:
        return torch.cat([semantic[:num_stuff], unknown])
    channels = semantic[num_stuff + labels]
    segments = torch.stack([segment_term(channel, box) for channel, box in zip(channels, boxes, strict=True)])
    instances = segments + mask_terms(masks, boxes, height, width)
    return torch.cat([semantic[:num_stuff], instances, unknown - segments.amax(dim=0, keepdim=True)])


def panoptic_target(semantic: Tensor, masks: Tensor, kept: Tensor, num_stuff: int) -> Tensor:
    """Labels [h, w] at quarter resolution: stuff, num_stuff + rank of a kept instance, unknown, or IGNORE."""
    quarter = semantic[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
    unknown = num_stuff + len(kept)
    target = torch.where((quarter >= num_stuff) & (quarter != IGNORE), unknown, quarter)
    for rank, index in enumerate(kept.tolist()):
        mask = masks[index, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
        rows, columns = mask.shape
        target[:rows, :columns][mask] = num_stuff + rank
    return target


def mask_targets(masks: Tensor, rois: Tensor) -> Tensor:
    """Ground truth masks bool [n, H, W] cut out by rois [n, 4] -> {0, 1} float [n, 28, 28]."""
    index = torch.arange(len(rois), device=rois.device, dtype=rois.dtype).unsqueeze(1)
    cut = roi_align(masks.unsqueeze(1).to(rois.dtype), torch.cat([index, rois], dim=1), MASK_SIZE, aligned=True)
    return (cut.squeeze(1) >= 0.5).to(rois.dtype)


def crop_labels(semantic: Tensor, boxes: Tensor) -> Tensor:
    """Labels [n, 28, 28] of the semantic map [H, W] at the bin centres of boxes [n, 4]."""
    height, width = semantic.shape
    centres = (torch.arange(MASK_SIZE, device=boxes.device) + 0.5) / MASK_SIZE
    x = boxes[:, :1] + centres * (boxes[:, 2:3] - boxes[:, :1])
    y = boxes[:, 1:2] + centres * (boxes[:, 3:] - boxes[:, 1:2])
    x, y = x.long().clamp(0, width - 1), y.long().clamp(0, height - 1)
    return semantic[y.unsqueeze(2), x.unsqueeze(1)]


def masked_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy over the labelled pixels; 0, not NaN, when there is none."""
    summed = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="sum")
    return summed / (target != IGNORE).sum().clamp(min=1)
