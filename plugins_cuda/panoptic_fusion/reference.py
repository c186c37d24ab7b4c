"""The panoptic head in plain PyTorch, one image after the other: the definition of all steps.

Step 1 is mask_terms and prune, step 2 panoptic_labels, step 3 merge and number_segments. The
heuristic merge has pasted_masks in step 1, first_masks in step 2, and no vote.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LOGIT_LIMIT = 2.0**100
FARTHEST = 2.0**23
MOST_CLASSES = 2**24  # where the channels do not say how many: the table's floats count so far


@torch.no_grad()
def panoptic_fusion(
    semantic: Tensor,
    boxes: Tensor,
    classes: Tensor,
    scores: Tensor,
    mask_logits: Tensor,
    counts: Tensor,
    sizes: Tensor,
    scales: Tensor,
    num_stuff: int,
    stuff_area_limit: float,
    mask_overlap_threshold: float = 0.3,
    heuristic: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """From semantic logits and detections to one label a pixel, at network resolution: UPSNet's panoptic head (CVPR
    2019, section 3.2), or the heuristic merge of Kirillov et al. (Panoptic Segmentation, CVPR 2019, section 5).

    semantic: [B, S + T, h, w], logits at a quarter of the network resolution, the S stuff channels first (S >= 1; T may
    be 0: nothing is unknown then).
    boxes: float32 [B, N, 4], x1 y1 x2 y2 in network pixels, inclusive corners; inverted ones have no mask.
    classes: int64 [B, N], thing index 0..T-1 (heuristic: whatever T, below 2^24). scores: float32 [B, N], descending;
    they are only copied. mask_logits: [B, N, M, M], of the box's class. counts: int32 [B], number of valid detections.
    sizes: int32 [B, 2], height and width inside the padding. scales: float32 [B], network pixels per original pixel.
    stuff_area_limit: stuff with less area than this, in original pixels, becomes void.
    mask_overlap_threshold: a detection is dropped when more than this part of its mask lies on the masks of its class
    that were accepted before it.
    heuristic: boxes have exclusive corners, which are not rounded; a mask is its probabilities, resized to the box (0
    around it), where they are at least one half; the accepted masks of all classes count as one in the overlap; a pixel
    is the first accepted mask's, else the best semantic channel's, of which those from S on are void; nothing is voted.
    semantic (contiguous or channels_last) and mask_logits: float32, float16 or bfloat16; all arithmetic is float32.

    Returns panoptic uint8 [B, 4h, 4w] (0 void, else 1 + row of segments), segments float32 [B, S + N, 7] (contiguous
    category, score, area, tight box x1 y1 x2 y2 with exclusive x2, y2; stuff in class order, then instances in score
    order, then zeros) and segment_count int32 [B].

    Whatever the input holds, the compiled operators and the reference agree on it: logits are clamped to +-2^100, NaN
    counts as -2^100; a detection with a NaN coordinate or a class that does not exist is dropped; boxes are clamped to
    +-2^23, counts to 0..N, sizes to the map. (The ONNX body wants finite boxes, valid classes and counts.)
    ValueError when a shape or type is another one, or S + N does not fit a byte.

    The definition computes in float32, or in float64 where the semantic logits are float64.
    """
    numbers = (num_stuff, stuff_area_limit, mask_overlap_threshold, heuristic)
    return fuse(semantic, boxes, classes, scores, mask_logits, counts, sizes, scales, *numbers)


@torch.no_grad()
def fuse(
    semantic: Tensor,
    boxes: Tensor,
    classes: Tensor,
    scores: Tensor,
    mask_logits: Tensor,
    counts: Tensor,
    sizes: Tensor,
    scales: Tensor,
    num_stuff: int,
    stuff_area_limit: float,
    mask_overlap_threshold: float = 0.3,
    heuristic: bool = False,
    unknown: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """`panoptic_fusion`, and what the operator does not offer: without `unknown` no pixel is so, each goes to the best
    of stuff and instances (not for the heuristic merge, which has no such channel)."""
    dtype = torch.promote_types(semantic.dtype, torch.float32)
    semantic, mask_logits = bounded_logits(semantic.to(dtype)), bounded_logits(mask_logits.to(dtype))
    num_things = MOST_CLASSES if heuristic else semantic.shape[1] - num_stuff
    usable = ~boxes.isnan().any(-1) & (classes >= 0) & (classes < num_things)
    boxes = boxes.to(dtype).nan_to_num(nan=0).clamp(-FARTHEST, FARTHEST)
    batch, rows, (height, width) = len(semantic), boxes.shape[1], semantic.shape[2:]
    panoptic = torch.zeros(batch, 4 * height, 4 * width, dtype=torch.uint8, device=semantic.device)
    segments = torch.zeros(batch, num_stuff + rows, 7, device=semantic.device)
    segment_count = torch.zeros(batch, dtype=torch.int32, device=semantic.device)
    if panoptic.numel() == 0:  # no images, or none with pixels
        return panoptic, segments, segment_count
    for image, count in enumerate(counts.clamp(0, rows).tolist()):
        logits = F.interpolate(semantic[image : image + 1], scale_factor=4, mode="bilinear", align_corners=False)[0]
        valid = valid_pixels(sizes[image], logits)
        limit = stuff_area_limit * scales[image] * scales[image]
        present = valid & usable[image, :count, None, None]
        if heuristic:
            masks = pasted_masks(mask_logits[image, :count], boxes[image, :count], *valid.shape) & present
            keep = prune(masks, torch.zeros_like(classes[image, :count]), mask_overlap_threshold)
            labels = first_masks(masks[keep], logits.argmax(0), num_stuff)
        else:
            terms = mask_terms(mask_logits[image, :count], boxes[image, :count], *valid.shape)
            keep = prune((terms > 0) & present, classes[image, :count], mask_overlap_threshold)
            labels = panoptic_labels(logits, terms[keep], boxes[image, keep], classes[image, keep], num_stuff, unknown)
            labels[~valid] = num_stuff + len(keep)
            labels = vote(labels, logits.argmax(0), len(keep), num_stuff, len(logits))
        labels[~valid] = void = num_stuff + len(keep)
        labels = drop_small_stuff(labels, num_stuff, void, limit)
        kept_classes, kept_scores = (values[image, keep] for values in (classes, scores))
        panoptic[image], segments[image], segment_count[image] = number_segments(
            labels, kept_classes, kept_scores, num_stuff, num_stuff + rows
        )
    return panoptic, segments, segment_count


def bounded_logits(logits: Tensor) -> Tensor:
    """Everything within +-LOGIT_LIMIT, NaN at its lower end: sums stay finite and comparisons mean something."""
    return logits.nan_to_num(nan=-LOGIT_LIMIT).clamp(-LOGIT_LIMIT, LOGIT_LIMIT)


def valid_pixels(size: Tensor, logits: Tensor) -> Tensor:
    """bool [H, W]: the image inside the padding."""
    height, width = logits.shape[1:]
    rows = torch.arange(height, device=logits.device) < size[0]
    columns = torch.arange(width, device=logits.device) < size[1]
    return rows[:, None] & columns


def hat_weights(low: Tensor, high: Tensor, mask_size: int, length: int) -> Tensor:
    """[n, length, M]: row p of n holds the weights with which the M cells make pixel p of the integer box low..high
    (inclusive; nothing where high < low): bilinear, half-pixel centres, clamped at the edges; zero outside the box."""
    start = low.trunc()
    size = high.trunc() - start + 1
    pixel = torch.arange(length, device=low.device, dtype=low.dtype) - start[:, None]
    source = ((pixel + 0.5) * mask_size / size[:, None].clamp(min=1) - 0.5).clamp(0, mask_size - 1)
    cell = torch.arange(mask_size, device=low.device, dtype=low.dtype)
    weights = (1 - (source[..., None] - cell).abs()).clamp(min=0)
    return weights * ((pixel >= 0) & (pixel < size[:, None]))[..., None]


def mask_terms(mask_logits: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """[n, H, W]: mask logits [n, M, M] resized to the integer boxes [n, 4], zero outside them."""
    mask_size = mask_logits.shape[-1]
    rows = hat_weights(boxes[:, 1], boxes[:, 3], mask_size, height)
    columns = hat_weights(boxes[:, 0], boxes[:, 2], mask_size, width)
    return rows @ mask_logits @ columns.transpose(1, 2)


def pasted_masks(mask_logits: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """bool [n, H, W]: where the probabilities of mask logits [n, M, M], resized to the boxes [n, 4] (exclusive corners,
    not rounded; nothing where one has no width or height), are at least one half."""
    mask_size = mask_logits.shape[-1]
    rows = paste_weights(boxes[:, 1], boxes[:, 3], mask_size, height)
    columns = paste_weights(boxes[:, 0], boxes[:, 2], mask_size, width)
    return rows @ mask_logits.sigmoid() @ columns.transpose(1, 2) >= 0.5


def paste_weights(low: Tensor, high: Tensor, mask_size: int, length: int) -> Tensor:
    """[n, length, M]: row p of n holds the weights with which the M cells between low and high make pixel p: bilinear,
    half-pixel centres, cells beyond the M count 0."""
    pixel = torch.arange(length, device=low.device, dtype=low.dtype) + 0.5
    size = (high - low)[:, None]
    place = (pixel - low[:, None]) / size.where(size > 0, 1) * mask_size - 0.5
    cell = torch.arange(mask_size, device=low.device, dtype=low.dtype)
    weights = (1 - (place[..., None] - cell).abs()).clamp(min=0)
    return weights * (size > 0)[..., None]


def first_masks(masks: Tensor, semantic: Tensor, num_stuff: int) -> Tensor:
    """int64 [H, W], labels as `panoptic_labels` gives them: the first of the accepted masks [K, H, W] that covers the
    pixel, else its semantic label, int64 [H, W], of which those that are no stuff are void."""
    labels = semantic.clamp(max=num_stuff)
    labels[labels == num_stuff] = num_stuff + len(masks)
    for instance in reversed(range(len(masks))):
        labels[masks[instance]] = num_stuff + instance
    return labels


def prune(masks: Tensor, classes: Tensor, overlap_threshold: float) -> Tensor:
    """Indices [k] of the masks [n, H, W] that are neither empty nor covered, by more than the threshold, by the union
    of the masks of the same class that were accepted before them."""
    taken: dict[int, Tensor] = {}
    keep = []
    areas = masks.sum((1, 2))
    threshold = torch.tensor(overlap_threshold, dtype=torch.float32, device=masks.device)
    for row, (mask, area, label) in enumerate(zip(masks, areas, classes.tolist(), strict=True)):
        before = taken.get(label, torch.zeros_like(mask))
        if area > 0 and (mask & before).sum() / area <= threshold:
            keep.append(row)
            taken[label] = before | mask
    return torch.tensor(keep, dtype=torch.int64, device=masks.device)


def panoptic_labels(
    logits: Tensor, terms: Tensor, boxes: Tensor, classes: Tensor, num_stuff: int, unknown: bool = True
) -> Tensor:
    """int64 [H, W], the argmax over [stuff | instances | unknown], ties to the lowest; without `unknown` over the rest.

    0..S-1 stuff, S+k instance k, S+K unknown.
    logits: [S + T, H, W] at full resolution. terms, boxes, classes: the mask terms of the K accepted instances, in
    score order. Written as a running maximum, so that the [S + K + 1, H, W] logits never exist at once.
    """
    best, labels = logits[:num_stuff].max(0)
    highest = torch.zeros_like(best) if len(terms) == 0 else torch.full_like(best, -torch.inf)
    for instance, (term, label) in enumerate(zip(terms, classes.tolist(), strict=True)):
        segment = segment_term(logits[num_stuff + label], boxes[instance])
        highest = torch.maximum(highest, segment)
        logit = segment + term
        labels[logit > best] = num_stuff + instance
        best = torch.maximum(best, logit)
    if unknown and len(logits) > num_stuff:
        labels[logits[num_stuff:].amax(0) - highest > best] = num_stuff + len(terms)
    return labels


def segment_term(channel: Tensor, box: Tensor) -> Tensor:
    """[H, W]: a semantic channel inside rows int(y1)..round(y2) (inclusive; half to even), likewise columns; else 0."""
    row = torch.arange(channel.shape[0], device=channel.device)
    column = torch.arange(channel.shape[1], device=channel.device)
    first, last = box[:2].trunc(), box[2:].round()
    rows = (row >= first[1]) & (row <= last[1])
    columns = (column >= first[0]) & (column <= last[0])
    return torch.where(rows[:, None] & columns, channel, 0)


def merge(
    labels: Tensor, semantic: Tensor, instances: int, num_stuff: int, num_classes: int, area_limit: Tensor
) -> Tensor:
    """UPSNet's: the majority rule, then the area limit (network pixels)."""
    labels = vote(labels, semantic, instances, num_stuff, num_classes)
    return drop_small_stuff(labels, num_stuff, num_stuff + instances, area_limit)


def vote(labels: Tensor, semantic: Tensor, instances: int, num_stuff: int, num_classes: int) -> Tensor:
    """The majority rule, on labels as `panoptic_labels` gives them. semantic: int64 [H, W], the argmax over all
    semantic channels.

    An instance whose region holds one stuff class on at least half of its pixels, as the commonest semantic label (ties
    to the lowest), becomes that stuff.
    """
    labels = labels.clone()
    for label in range(num_stuff, num_stuff + instances):
        region = labels == label
        votes = torch.bincount(semantic[region], minlength=num_classes)
        majority = int(votes.argmax())
        if majority < num_stuff and 0 < votes.sum() <= 2 * votes[majority]:
            labels[region] = majority
    return labels


def drop_small_stuff(labels: Tensor, num_stuff: int, void: int, area_limit: Tensor) -> Tensor:
    """Stuff with a total area < area_limit, in network pixels, becomes void."""
    labels = labels.clone()
    for label in range(num_stuff):
        region = labels == label
        if region.sum() < area_limit:
            labels[region] = void
    return labels


def number_segments(
    labels: Tensor, classes: Tensor, scores: Tensor, num_stuff: int, max_rows: int
) -> tuple[Tensor, Tensor, int]:
    """The map uint8 [H, W] (0 void, else 1 + row), the table float32 [max_rows, 7] and its number of rows."""
    panoptic = torch.zeros_like(labels, dtype=torch.uint8)
    table = torch.zeros(max_rows, 7, device=labels.device)
    rows = 0
    for label in range(num_stuff + len(classes)):
        y, x = torch.nonzero(labels == label, as_tuple=True)
        if len(y) == 0:
            continue
        instance = label - num_stuff
        category, score = (
            (label, 1.0) if instance < 0 else (num_stuff + int(classes[instance]), float(scores[instance]))
        )
        box = [int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1]
        table[rows] = torch.tensor([category, score, len(y), *box])
        rows += 1
        panoptic[y, x] = rows
    return panoptic, table, rows
