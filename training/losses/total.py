"""All losses of UPSNet (Xiong et al., CVPR 2019, section 3.3) for one batch; Panoptic FPN's are the first six.
`dice` is an option."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from plugins_cuda.roi_align_fpn.reference import OUTSIDE
from training.config import LossConfig
from training.data.batch import Batch
from training.data.sample import IGNORE
from training.losses import terms
from training.losses.assign import assign_anchors, assign_rois, foreground_rows
from training.losses.semantic import STRIDE, UpsampledCrossEntropy
from training.losses.targets import Targets, crop_labels, mask_targets, panoptic_targets, things_as_one, with_image
from training.model.heads import BOX_POOL, MASK_POOL, MASK_SIZE
from training.model.rpn import RpnOutput
from training.model.upsnet import PYRAMID_LEVELS, UPSNet
from upsnet.errors import InputError


class TrainingLosses(nn.Module):
    """Wraps a network; forward(batch) -> its weighted losses by name; `dice`, `semantic_roi` and `panoptic` are left
    out where their weight is 0. Minimise their sum.
    A network without things has the semantic loss alone, which may not be of weight 0 then (InputError).

    Each is the mean over the images of what it is for an image alone, so that processes with equal shares of a batch
    make the gradient of one process with all of it. All random choices for an image are functions of its seed.
    Every parameter takes part in every step, also when no image of the batch has an instance. Nothing waits for the
    device. Under autocast the network runs in the lower precision, targets and losses in float32.
    """

    def __init__(self, model: UPSNet, config: LossConfig) -> None:
        super().__init__()
        if not (model.num_things or config.semantic):
            raise InputError("loss.semantic is 0, but without things there is no other loss; give it a weight")
        self.model = model
        self.weights = config

    def forward(self, batch: Batch, given: Targets | None = None) -> dict[str, Tensor]:
        """given: targets to use instead of the drawn ones, to compare with another implementation."""
        return self.of_pyramid(self.model.pyramid(batch.images, batch.sizes), batch, given)

    def of_pyramid(self, pyramid: list[Tensor], batch: Batch, given: Targets | None = None) -> dict[str, Tensor]:
        """The losses when [P2..P6] are there already; the batch's images are not read."""
        model, config, weights = self.model, self.model.config, self.weights
        full_precision = torch.autocast(pyramid[0].device.type, enabled=False)
        semantic = model.semantic_head(pyramid[:PYRAMID_LEVELS], batch.sizes).float()
        if not model.num_things:
            return {"semantic": self.semantic_loss(semantic, batch)}
        proposed = model.rpn(pyramid)
        if given is None:
            with torch.no_grad(), full_precision:
                given = self.targets(batch, proposed)
        rois = only(given.rois.rois, given.rois.labels != IGNORE)
        scores, deltas = model.box_head(model.roi_features(pyramid, rois, BOX_POOL))
        masks, kept_masks = self.mask_logits(pyramid, given)
        with full_precision:
            proposed_logits, proposed_deltas = proposed.rows()
            rpn_cls, rpn_box = terms.rpn_losses(proposed_logits, proposed_deltas, given.rpn, config.rpn.beta)
            rcnn_cls, rcnn_box = terms.box_losses(scores, deltas, given.rois, config.box_head, model.conventions)
            foreground = is_thing(given.rois.labels[:, : masks.shape[1]])
            losses = {
                "rpn_cls": rpn_cls,
                "rpn_box": rpn_box,
                "rcnn_cls": rcnn_cls,
                "rcnn_box": weights.boxes * rcnn_box,
                "mask": terms.mask_loss(masks, given.masks, foreground),
                "semantic": self.semantic_loss(semantic, batch),
            }
            if weights.dice:
                losses["dice"] = weights.dice * terms.dice_loss(masks, given.masks, foreground)
            if weights.semantic_roi:
                losses["semantic_roi"] = weights.semantic_roi * self.semantic_roi_loss(semantic, batch, given.crops)
            if weights.panoptic:
                losses["panoptic"] = weights.panoptic * self.panoptic_loss(semantic, kept_masks, given)
        return losses

    def semantic_loss(self, semantic: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy at full resolution."""
        labels = things_as_one(batch.semantic, self.model.num_stuff) if self.model.heuristic else batch.semantic
        with torch.autocast(semantic.device.type, enabled=False):
            return self.weights.semantic * UpsampledCrossEntropy.apply(semantic, labels).mean()

    def targets(self, batch: Batch, proposed: RpnOutput) -> Targets:
        """Match and sample anchors, propose and sample RoIs, and cut out the targets of the heads."""
        model, config, conventions = self.model, self.model.config, self.model.conventions
        boxes, labels, seeds = self.truth_boxes(batch), batch.labels, batch.seeds
        proposals, valid = model.rpn.propose(proposed, batch.sizes, config.rpn.train_top_n)
        anchors = model.rpn.anchors(proposed)
        rois = assign_rois(proposals, valid, boxes, labels, seeds, config.box_head, conventions)
        first = foreground_rows(config.box_head)
        keep = config.panoptic.keep_fraction if self.weights.panoptic else 0.0
        return Targets(
            rpn=assign_anchors(anchors, boxes, batch.sizes, seeds, config.rpn, conventions),
            rois=rois,
            masks=mask_targets(batch.instances, rois.rois[:, :first], rois.owners[:, :first]),
            crops=crop_labels(batch.semantic, with_image(boxes)),
            panoptic=panoptic_targets(batch, boxes, keep, model.num_stuff),
        )

    def truth_boxes(self, batch: Batch) -> list[Tensor]:
        """The ground truth boxes in the network's conventions."""
        return [self.model.conventions.from_exclusive(boxes) for boxes in batch.boxes]

    def mask_logits(self, pyramid: list[Tensor], targets: Targets) -> tuple[Tensor, Tensor]:
        """The mask head, run once: logits [B, F, 28, 28] of the foreground RoIs and [B, K, 28, 28] of the kept boxes.

        Background and padding among these rows are computed too, without features: to leave them out, the host would
        have to wait for the device to tell their number.
        """
        first = targets.masks.shape[1]
        labels = targets.rois.labels[:, :first]
        rois = torch.cat([targets.rois.rois[:, :first], targets.panoptic.boxes], dim=1)
        things = torch.cat([torch.where(is_thing(labels), labels - 1, 0), targets.panoptic.labels], dim=1)
        used = torch.cat([is_thing(labels), targets.panoptic.kept], dim=1)
        features = self.model.roi_features(pyramid, only(rois, used), MASK_POOL)
        logits = self.model.mask_head(features, things.flatten()).float().unflatten(0, things.shape)
        return logits[:, :first], logits[:, first:]

    def semantic_roi_loss(self, semantic: Tensor, batch: Batch, crops: Tensor) -> Tensor:
        """Cross-entropy on 28x28 crops at the ground truth boxes.

        The paper crops the features and scores the crops. A 1x1 convolution and bilinear sampling inside the map
        commute, so cropping the logits gives the same with a fraction of the work.
        """
        own = self.model.conventions
        boxes = with_image(self.truth_boxes(batch)).to(semantic.dtype)
        cut = roi_align(semantic, boxes, MASK_SIZE, 1 / STRIDE, sampling_ratio=own.samples, aligned=own.aligned)
        return terms.crop_loss(cut, crops, [len(own) for own in batch.boxes])

    def panoptic_loss(self, semantic: Tensor, masks: Tensor, targets: Targets) -> Tensor:
        """Cross-entropy of the panoptic logits at quarter resolution. The instances that were drawn away teach the
        unknown class."""
        boxes, labels, kept, pixels = targets.panoptic
        corners = self.model.conventions.to_inclusive(boxes)
        logits = terms.panoptic_logits(semantic, corners / STRIDE, labels, masks, kept, self.model.num_stuff)
        return terms.panoptic_loss(logits, pixels)


def only(rois: Tensor, used: Tensor) -> Tensor:
    """Boxes [B, R, 4] where they are `used` [B, R]; else off every map, where RoIAlign has nothing to read and its
    gradient nothing to add. No loss looks at those rows; as [0, 0, 0, 0] they would all have pixel (0, 0) of P2, whose
    gradient adds one box after the other."""
    return rois.where(used.unsqueeze(2), OUTSIDE)


def is_thing(labels: Tensor) -> Tensor:
    """Which RoIs are foreground."""
    return (labels > 0) & (labels != IGNORE)
