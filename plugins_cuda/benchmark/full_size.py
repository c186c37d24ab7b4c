"""The heuristic merge as it is usually done, detectron2's way: every channel and every mask at full size, a loop over
the segments. A baseline."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def merge(
    semantic: Tensor,
    boxes: Tensor,
    classes: Tensor,
    scores: Tensor,
    mask_logits: Tensor,
    num_stuff: int,
    stuff_area_limit: float,
    mask_overlap_threshold: float,
) -> tuple[Tensor, Tensor]:
    """One image, arguments as `plugins_cuda.panoptic_fusion` takes them. ids int32 [4h, 4w] (0 void, else 1 + segment;
    instances first) and categories [segments]."""
    logits = F.interpolate(semantic, scale_factor=4, mode="bilinear", align_corners=False)[0]
    labels = logits.argmax(0)
    masks = paste(mask_logits[0].sigmoid(), boxes[0], *labels.shape)
    ids = torch.zeros_like(labels, dtype=torch.int32)
    categories: list[int] = []
    for row in scores[0].argsort(descending=True, stable=True).tolist():
        mask, taken = masks[row], ids > 0
        area = int(mask.sum())
        if area == 0 or int((mask & taken).sum()) / area > mask_overlap_threshold:
            continue
        categories.append(num_stuff + int(classes[0, row]))
        ids[mask & ~taken] = len(categories)
    for label in labels.unique().tolist():
        region = (labels == label) & (ids == 0)
        if label < num_stuff and int(region.sum()) >= stuff_area_limit:
            categories.append(label)
            ids[region] = len(categories)
    return ids, torch.tensor(categories)


def paste(probabilities: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """bool [n, H, W]: on a GPU all masks at once, over the whole image; on a CPU one after the other, over its box."""
    if boxes.device.type != "cpu":
        return sample(probabilities, boxes, 0, 0, height, width) >= 0.5
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    low, high = boxes[:, :2].floor().int() - 1, boxes[:, 2:].ceil().int() + 1
    corners = torch.cat([low.clamp(min=0), high.minimum(torch.tensor([width, height]))], dim=1)
    for row, (x1, y1, x2, y2) in enumerate(corners.tolist()):
        part = sample(probabilities[row : row + 1], boxes[row : row + 1], x1, y1, y2, x2)
        masks[row, y1:y2, x1:x2] = part[0] >= 0.5
    return masks


def sample(probabilities: Tensor, boxes: Tensor, left: int, top: int, bottom: int, right: int) -> Tensor:
    """[n, bottom - top, right - left]: the probabilities [n, M, M], bilinear, 0 around them."""
    x1, y1, x2, y2 = (boxes[:, side, None] for side in range(4))
    x = (torch.arange(left, right, device=boxes.device) + 0.5 - x1) / (x2 - x1) * 2 - 1
    y = (torch.arange(top, bottom, device=boxes.device) + 0.5 - y1) / (y2 - y1) * 2 - 1
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1)
    return F.grid_sample(probabilities[:, None], grid, align_corners=False)[:, 0]
