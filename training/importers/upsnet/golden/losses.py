"""The training losses of an imported network on one image, to compare them with those of its original.

Batch normalisation is frozen. Written are loss_NAME (float64, unweighted; loss_total as the configuration weighs them),
grad_norm/KEY (float64: L2 norm of the total's gradient, for each tensor that the configuration trains, under the
original's key), rpn_label_counts (int64: objects, background), and as used_NAME the `Samples` behind them.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.config import Config, LossConfig
from training.conventions import UPSNET
from training.data.batch import Batch
from training.data.sample import IGNORE
from training.importers.arrays import Arrays
from training.importers.upsnet.golden.inputs import Inputs
from training.importers.upsnet.golden.truth import Samples, Truth
from training.importers.upsnet.keys import original_names
from training.losses.assign import RoiTargets, RpnTargets
from training.losses.targets import PanopticTargets, Targets, mask_targets, panoptic_pixels, panoptic_targets
from training.losses.total import TrainingLosses, is_thing
from training.model import boxes as B
from training.model.heads import MASK_SIZE
from training.model.rpn import RpnOutput
from training.model.upsnet import UPSNet

UNWEIGHTED = LossConfig(semantic=1, semantic_roi=1, panoptic=1)


def loss_arrays(model: UPSNet, inputs: Inputs, truth: Truth, settings: Config) -> Arrays:
    """All arrays of an imported network in eval mode; samples that are not given are drawn with the run's seed."""
    unweighted = UNWEIGHTED.model_copy(update={"dice": float(settings.loss.dice > 0)})
    losses = TrainingLosses(model, unweighted).eval()
    batch = as_batch(inputs, truth, settings.seed)
    _, pyramid = inputs.pyramid(model)
    with torch.no_grad():
        proposed = model.rpn(pyramid)
        targets, kept = choose_targets(losses, batch, truth, proposed)
    values = losses.of_pyramid(pyramid, batch, targets)
    weights = settings.loss.model_dump() | {"rcnn_box": settings.loss.boxes}
    total = torch.stack([weights.get(name, 1.0) * value for name, value in values.items()]).sum()
    trained = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(total, list(trained.values()))
    names = original_names(model)
    used = used_samples(targets, kept, len(losses.model.rpn.anchors(proposed)))
    return {
        **{f"loss_{name}": np.array(value.item()) for name, value in (values | {"total": total}).items()},
        **{
            f"grad_norm/{names[key]}": np.array(gradient.double().norm().item())
            for key, gradient in zip(trained, gradients, strict=True)
        },
        "rpn_label_counts": np.array([int((targets.rpn.labels == value).sum()) for value in (1, 0)]),
        **{f"used_{name}": value.numpy() for name, value in used._asdict().items()},
    }


def as_batch(inputs: Inputs, truth: Truth, seed: int) -> Batch:
    """A batch has exclusive corners and visible pixels. Its images are left empty: the network's input is given."""
    return Batch(
        images=torch.empty(1, 0, 0, 3, dtype=torch.uint8),
        sizes=inputs.sizes,
        scales=torch.tensor([inputs.scale]),
        semantic=truth.semantic[None],
        instances=numbered(truth.masks)[None],
        boxes=[truth.boxes + torch.tensor([0.0, 0, 1, 1])],
        labels=[truth.labels],
        seeds=torch.tensor([seed]),
        image_ids=[0],
    )


def numbered(masks: Tensor) -> Tensor:
    """int16 [H, W]: 0, or 1 + the row of the mask [n, H, W] there; where some overlap, of the last one."""
    numbers = torch.zeros(masks.shape[1:], dtype=torch.int16)
    for row, mask in enumerate(masks):
        numbers[mask] = 1 + row
    return numbers


def choose_targets(losses: TrainingLosses, batch: Batch, truth: Truth, proposed: RpnOutput) -> tuple[Targets, Tensor]:
    """The targets of the given samples, drawn ones for the rest, and the rows of the kept instances.

    The foreground RoIs come first, in the order in which they were given. Masks that overlap stay whole in the mask
    targets; in the panoptic target the instance that was kept last is on top.
    """
    given, model = truth.given, losses.model
    drawn = losses.targets(batch, proposed)
    rois = drawn.rois if given.rois is None else _rois(truth)
    count = int(is_thing(rois.labels).sum())
    masks = torch.zeros(1, max(1, count), MASK_SIZE, MASK_SIZE)  # without foreground, one of background: unused
    if given.mask_targets is not None:
        masks[0, :count] = given.mask_targets
    elif count:
        own = truth.masks[rois.owners[0, :count]]
        masks[0, :count] = mask_targets(own, rois.rois[0, :count, None], torch.zeros(count, 1))[:, 0]
    kept = given.kept
    if kept is None:
        # Rows instead of boxes: what comes back are the rows that were drawn.
        rows = torch.arange(len(truth.boxes), dtype=torch.float32)[:, None].expand(-1, 4)
        fraction = model.config.panoptic.keep_fraction
        kept = panoptic_targets(batch, [rows], fraction, model.num_stuff).boxes[0, :, 0].long()
    pixels = given.panoptic_target
    if pixels is None:
        order = torch.arange(len(kept))[None]
        instances = numbered(truth.masks[kept])[None]
        pixels = panoptic_pixels(batch.semantic, instances, order, len(kept), model.num_stuff)[0]
    targets = Targets(
        rpn=drawn.rpn if given.rpn_labels is None else _anchors(truth, given.rpn_labels, model.rpn.anchors(proposed)),
        rois=rois,
        masks=masks,
        crops=drawn.crops if given.crop_labels is None else given.crop_labels,
        panoptic=PanopticTargets(
            truth.boxes[kept][None], truth.labels[kept][None], torch.ones(1, len(kept), dtype=torch.bool), pixels[None]
        ),
    )
    return targets, kept


def _anchors(truth: Truth, labels: Tensor, anchors: Tensor) -> RpnTargets:
    """The targets of given labels of all anchors [A, 4]: an object's box is the one that it overlaps most."""
    used = (labels >= 0).nonzero()[:, 0]
    labels = labels[used]
    deltas = torch.zeros(len(used), 4)
    objects = labels == 1
    if objects.any():
        own = anchors[used[objects]]
        owners = UPSNET.iou(own, truth.boxes).argmax(1)
        deltas[objects] = UPSNET.encode(truth.boxes[owners], own, B.RPN_WEIGHTS)
    return RpnTargets(used[None], labels[None], deltas[None])


def _rois(truth: Truth) -> RoiTargets:
    """The targets of given RoIs. Without given owners: the box of the RoI's class that it overlaps most."""
    given = truth.given
    assert given.rois is not None and given.roi_labels is not None
    order = (given.roi_labels == 0).long().argsort(stable=True)
    rois, labels = given.rois[order], given.roi_labels[order]
    count = int((labels > 0).sum())
    owners, deltas = torch.zeros(len(rois), dtype=torch.int64), torch.zeros(len(rois), 4)
    if given.roi_owners is not None:
        owners[:count] = given.roi_owners[order][:count]
    elif count:
        other = truth.labels != labels[:count, None] - 1
        owners[:count] = UPSNET.iou(rois[:count], truth.boxes).masked_fill(other, -1).argmax(1)
    deltas[:count] = UPSNET.encode(truth.boxes[owners[:count]], rois[:count], B.BOX_WEIGHTS)
    return RoiTargets(rois[None], labels[None], deltas[None], owners[None])


def used_samples(targets: Targets, kept: Tensor, anchors: int) -> Samples:
    """The samples that would give `targets` again, none left out; `kept`: the rows of the kept instances."""
    rpn, rois = targets.rpn, targets.rois
    sampled, real = rpn.labels[0] != IGNORE, rois.labels[0] != IGNORE
    labels = torch.full((anchors,), -1).scatter(0, rpn.anchors[0, sampled], rpn.labels[0, sampled])
    foreground = int(is_thing(rois.labels).sum())
    return Samples(
        rpn_labels=labels.to(torch.int8),
        rois=rois.rois[0, real],
        roi_labels=rois.labels[0, real].to(torch.int16),
        roi_owners=F.pad(rois.owners[0, :foreground], (0, int(real.sum()) - foreground)).to(torch.int16),
        mask_targets=targets.masks[0, :foreground].byte(),
        crop_labels=targets.crops.byte(),
        kept=kept.to(torch.int16),
        panoptic_target=targets.panoptic.pixels[0].byte(),
    )
