"""What the exported graph does not give: every instance for AP, the semantic map, and test-time augmentation.

Test-time augmentation shows the network several views of the same photos (other sizes, mirrored) and answers at the
size of one of them, the base:

* semantic logits: each view's are resampled onto the base's grid and averaged;
* boxes: each view's detections, after the view's own NMS, are mapped to the base, pooled, and go through the same NMS
  again (same threshold, same number kept);
* masks: the boxes that remain are mapped into each view, the mask head runs there, and the answers are averaged (logits
  for the panoptic map, probabilities for the instances);
* one panoptic fusion at the base's size.

Views come one after the other, twice where there are several (before and after the boxes are known): of all views at
once only the photos and detections are in memory. With the base as the only view all this is the network's `forward`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from training.conventions import Conventions, far_corners
from training.model import boxes as B
from training.model.rpn import LOWEST
from training.model.upsnet import (
    PYRAMID_LEVELS,
    Detections,
    ScoredProposals,
    Suppression,
    UPSNet,
    no_detections,
    suppress,
)
from upsnet.metrics.mean_iou import UNDECIDED

STRIDE = 4  # of the semantic logits
CHANNELS_AT_ONCE = 8
INSTANCES = Suppression(score_threshold=0.05, nms_threshold=0.5, max_output=100, by_class=True)  # as in Mask R-CNN


class View(NamedTuple):
    """A batch of photos at one size. `flipped`: mirrored left to right inside the padding."""

    images: Tensor  # uint8 B x H x W x 3
    sizes: Tensor  # int32 B x 2
    on_host: list[list[int]]  # the sizes again: the host compares views without waiting for the device
    flipped: bool = False


class Outputs(NamedTuple):
    """The graph's outputs, and what it does not give; all at the base's size."""

    panoptic: Tensor  # uint8 B x H x W
    segments: Tensor  # float32 B x K x 7
    segment_count: Tensor  # int32 B
    semantic: Tensor  # uint8 B x H x W, see `semantic_map`
    instances: Detections  # exclusive corners
    masks: Tensor  # float32 B x N x 28 x 28, probabilities


def infer(model: UPSNet, views: Sequence[View], base: View, scales: Tensor) -> Outputs:
    """The network in eval mode on `views` (on its device), answers at the size of `base`, which need not be a view.

    scales: float32 B, base pixels for one original pixel. Every image of `base` must be the same photo in all views.
    """
    semantic, segments, instances = torch.zeros((), device=scales.device), [], []
    for view in views:
        pyramid = model.pyramid(view.images, view.sizes)
        semantic = semantic + to_base(model.semantic_head(pyramid[:PYRAMID_LEVELS], view.sizes), view, base)
        if model.num_things:
            scored = model.score_proposals(pyramid, view.sizes)
            segments.append(moved(model.select(scored), view, base, model.conventions))
            instances.append(moved(select_instances(model, scored), view, base, model.conventions))
    semantic = semantic / len(views)
    things = objects = no_detections(base.sizes)
    if model.num_things:
        things = join(segments, model.suppression, model.conventions)
        objects = join(instances, INSTANCES, model.conventions)
    thing_masks = object_masks = torch.zeros((), device=scales.device)
    for view in views:
        if len(views) > 1:
            pyramid = model.pyramid(view.images, view.sizes)
        thing_masks = thing_masks + mask_logits(model, pyramid, things, view, base)
        object_masks = object_masks + mask_logits(model, pyramid, objects, view, base).sigmoid()
    fused = model.fuse(semantic, things, thing_masks / len(views), base.sizes, scales)
    exclusive = objects._replace(boxes=model.conventions.to_exclusive(objects.boxes))
    labels = semantic_map(model, semantic, *fused[:2])
    return Outputs(*fused, labels, exclusive, object_masks / len(views))


def select_instances(model: UPSNet, scored: ScoredProposals) -> Detections:
    """Mask R-CNN's detections (ICCV 2017): every (proposal, class) over a low score, NMS in each class, best 100."""
    batch, rows = scored.valid.shape
    things = scored.probabilities.shape[1] - 1
    scores = scored.probabilities[:, 1:].reshape(batch, rows, things) * scored.valid.unsqueeze(2)
    deltas = scored.deltas[:, 1:].reshape(batch, rows, things, 4)
    boxes = model.conventions.decode(deltas, scored.proposals.unsqueeze(2), B.BOX_WEIGHTS).flatten(1, 2)
    boxes = model.conventions.clip(boxes, scored.sizes)
    labels = torch.arange(things, device=boxes.device).repeat(batch, rows)
    return suppress(boxes, scores.flatten(1), labels, INSTANCES, model.conventions)


def join(found: Sequence[Detections], rule: Suppression, conventions: Conventions) -> Detections:
    """The detections of all views, boxes in one frame -> one set without duplicates. One view's stay as they are."""
    if len(found) == 1:
        return found[0]
    boxes, scores, labels = (torch.cat([part[field] for part in found], dim=1) for field in range(3))
    rows = torch.arange(found[0].scores.shape[1], device=scores.device)
    padding = torch.cat([rows >= part.counts.unsqueeze(1) for part in found], dim=1)
    rule = rule._replace(score_threshold=LOWEST)
    return suppress(boxes, scores.masked_fill(padding, -torch.inf), labels, rule, conventions)


def mask_logits(model: UPSNet, pyramid: list[Tensor], found: Detections, view: View, base: View) -> Tensor:
    """[B, N, 28, 28] of detections in the base's frame, as this view sees them, the right way round."""
    logits = model.mask_logits(pyramid, moved(found, base, view, model.conventions)).float()
    return logits.flip(-1) if view.flipped else logits


# Frames: a view's pixels and the base's


def same_frame(a: View, b: View) -> bool:
    return a.flipped == b.flipped and a.images.shape == b.images.shape and a.on_host == b.on_host


def moved(found: Detections, source: View, target: View, conventions: Conventions) -> Detections:
    """Detections in the pixels of one view -> in those of another view of the same photos."""
    if same_frame(source, target):
        return found
    x1, y1, x2, y2 = conventions.to_exclusive(found.boxes).unbind(-1)
    if source.flipped != target.flipped:
        width = source.sizes[:, 1:].to(x1.dtype)
        x1, x2 = width - x2, width - x1
    ratio = far_corners(target.sizes.to(x1.dtype) / source.sizes).unsqueeze(1)
    return found._replace(boxes=conventions.from_exclusive(torch.stack([x1, y1, x2, y2], dim=-1) * ratio))


def to_base(logits: Tensor, view: View, base: View) -> Tensor:
    """A view's semantic logits [B, C, h, w] on the base's grid: bilinear at the same places of each photo."""
    if same_frame(view, base):
        return logits

    def places(axis: int) -> Tensor:
        """[B, cells] of the base's grid along y (0) or x (1), in the view's padded map from -1 to 1."""
        cells = base.images.shape[1 + axis] // STRIDE
        pixels = (torch.arange(cells, device=logits.device, dtype=torch.float32) + 0.5) * STRIDE
        pixels = pixels * (view.sizes[:, axis] / base.sizes[:, axis]).unsqueeze(1)
        if axis and view.flipped:
            pixels = view.sizes[:, 1:] - pixels
        return pixels * 2 / view.images.shape[1 + axis] - 1

    y, x = places(0), places(1)
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1)
    return F.grid_sample(logits.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)


def semantic_map(model: UPSNet, semantic: Tensor, panoptic: Tensor, segments: Tensor) -> Tensor:
    """uint8 [B, H, W]: the contiguous category of each pixel of semantic logits [B, semantic_channels, h, w].

    A semantic head that knows all things as one says where things are, not which: there a pixel's category is its
    thing's in the panoptic map and table, and UNDECIDED where that has none.
    """
    background = int(model.background)
    if not model.heuristic:
        return label_map(semantic[:, background:])
    labels, first_thing = label_map(semantic), model.num_stuff - background
    nothing = segments.new_full((len(segments), 1), UNDECIDED)
    shown = torch.cat([nothing, segments[..., 0]], dim=1).to(torch.uint8)
    found = torch.gather(shown, 1, panoptic.flatten(1).long()).reshape(panoptic.shape)
    found = torch.where(found >= first_thing, found, UNDECIDED)
    return torch.where(labels < first_thing, labels, found)


def label_map(semantic: Tensor) -> Tensor:
    """uint8 [B, 4h, 4w]: the argmax of semantic logits [B, C, h, w] brought to full size, ties to the lowest category.

    A few channels at a time: the full-size logits of all channels, 570 MB on COCO, never exist at once.
    """
    batch, channels, height, width = semantic.shape
    best = semantic.new_full((batch, STRIDE * height, STRIDE * width), -torch.inf, dtype=torch.float32)
    labels = torch.zeros_like(best, dtype=torch.uint8)
    for start in range(0, channels, CHANNELS_AT_ONCE):
        part = semantic[:, start : start + CHANNELS_AT_ONCE].float()
        part = F.interpolate(part, scale_factor=float(STRIDE), mode="bilinear", align_corners=False)
        highest, index = part.max(dim=1)
        labels = torch.where(highest > best, (index + start).to(torch.uint8), labels)
        best = torch.maximum(best, highest)
    return labels
