"""RoIAlign over a feature pyramid, in plain PyTorch: the definition."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, nan
from typing import Any  # roi_align's further arguments

import torch
from torch import Tensor
from torchvision.ops import roi_align

FINEST_STRIDE = 4
CANONICAL_SIZE = 224.0  # side in network pixels of the smallest square box on P4
LIMITS = (0.5, 1.0, 2.0)  # of a box's side / 224: from here on it is on P3, P4, P5
# The least float32 of which floor(4 + log2(ratio)) is that level: the logarithm and the sum are rounded to float32
# before the floor. 1e-8 changes no float32 ratio so near to a limit.
ROUNDED_LIMITS = (0.5 - 2**-24, 1 - 2**-24, 2 - 3 * 2**-23)
LONGEST = 32768.0  # network pixels: where samples are counted, a longer box ends there
OUTSIDE = -1e6  # a box at this corner lies outside of every map: it gives zeros, and no gradient


def assign_levels(rois: Tensor, inclusive: bool = False, rounded: bool = False) -> Tensor:
    """Level 0..3 (P2..P5) of boxes [..., 4]: clip(floor(2 + log2(sqrt(w h) / 224 + 1e-6)), 0, 3).

    rounded: with 1e-8 and every step rounded to float32, as detectron2 has it. That is the same, but for ratios within
    1e-6 below 1/2, 1 and 2: of those, one to three float32 are on the higher level.
    Written as comparisons instead of a logarithm, so that every executor rounds alike. Inverted boxes count as empty
    (level 0). `inclusive` adds 1 to width and height, the legacy convention. (FPN, CVPR 2017, eq. 1)
    """
    extra = 1.0 if inclusive else 0.0
    width = (rois[..., 2] - rois[..., 0] + extra).clamp(min=0)
    height = (rois[..., 3] - rois[..., 1] + extra).clamp(min=0)
    ratio = (width * height).sqrt() / CANONICAL_SIZE
    ratio, limits = (ratio, ROUNDED_LIMITS) if rounded else (ratio + 1e-6, LIMITS)
    return (ratio >= limits[0]).long() + (ratio >= limits[1]).long() + (ratio >= limits[2]).long()


def without_nonfinite(rois: Tensor) -> Tensor:
    """Boxes [..., 4] with a NaN or infinite coordinate replaced by one that gives zeros."""
    return rois.where(rois.isfinite().all(dim=-1, keepdim=True), rois.new_full((), OUTSIDE))


def countable(rois: Tensor) -> Tensor:
    """Boxes [..., 4] for torchvision's roi_align with sampling_ratio=0, whose time and memory grow with a box: at most
    LONGEST wide and high; and inverted ones empty, of which it cannot count the samples."""
    near, far = rois.split(2, dim=-1)
    return torch.cat([near, far.minimum(near + LONGEST).maximum(near)], dim=-1)


def pool(feature: Tensor, *arguments: Any) -> Tensor:
    """torchvision's roi_align, also of a map without pixels, and of one on a CPU that is not finite everywhere.

    It reads pixel (0, 0) with weight 0 for samples outside, and 0 times infinity is NaN. So the other pixels are pooled
    on their own, and what is not finite stands where it has weight.
    """
    if feature.numel() == 0:  # the sum of nothing is 0, and a gradient finds its way
        return feature.sum()
    finite = feature.isfinite()
    if feature.device.type != "cpu" or finite.all():
        return roi_align(feature, *arguments)
    pooled = roi_align(feature.where(finite, 0), *arguments)
    for value, there in ((inf, feature == inf), (-inf, feature == -inf), (nan, feature.isnan())):
        weight = roi_align(there.to(feature.dtype), *arguments)
        pooled = pooled + torch.where(weight > 0, value, 0.0)
    return pooled


def roi_align_fpn(
    features: Sequence[Tensor],
    rois: Tensor,
    output_size: int,
    sampling_ratio: int = 2,
    aligned: bool = True,
    inclusive: bool = False,
    rounded_levels: bool = False,
) -> Tensor:
    """Pool boxes from P2..P5 (FPN, CVPR 2017; RoIAlign, Mask R-CNN, ICCV 2017).

    features: four maps [B, C, H/s, W/s] at strides 4, 8, 16, 32, of one floating type; contiguous or channels-last.
    rois: [B, R, 4], x1 y1 x2 y2 in network pixels, taken as float32; padded rows are boxes like any other. A box that
        lies outside of its map, or has a NaN or infinite coordinate, gives zeros, and so does a map without pixels.
    sampling_ratio: samples a bin in each direction. 0: adaptive, as many as a bin is long in pixels of the map, rounded
        up. Then an empty or inverted box gives zeros, and one longer than 32768 network pixels ends there.
    aligned: torchvision's half-pixel shift (False: the legacy rule, boxes of at least one pixel of the map).
    inclusive: the level rule takes widths and heights with + 1. rounded_levels: as detectron2 rounds it; see
        `assign_levels`.
    Returns [B, R, C, S, S], contiguous, in the features' type; coordinates, weights and sums are float32 (float64 for
    float64 features), also under autocast. Gradients go to the features alone. ValueError when the inputs do not fit
    together.

    The definition pools half types in float32 with one rounding. Every level pools all boxes, those of other levels
    moved outside, where they give zeros: to choose its own, the host would have to wait for the device.
    """
    batch, count = rois.shape[:2]
    channels = features[0].shape[1]
    rois = without_nonfinite(rois.detach().float().to(torch.promote_types(features[0].dtype, torch.float32)))
    level = assign_levels(rois.float(), inclusive, rounded_levels)
    if sampling_ratio == 0:
        rois = countable(rois)
    image = torch.arange(batch, device=rois.device, dtype=rois.dtype)[:, None, None].expand(-1, count, -1)
    pooled = rois.new_zeros(batch * count, channels, output_size, output_size)
    for index, feature in enumerate(features):
        own = rois.where((level == index)[..., None], OUTSIDE)
        boxes = torch.cat([image, own], dim=2).flatten(0, 1)
        scale = 1.0 / (FINEST_STRIDE * 2**index)
        pooled = pooled + pool(feature.to(rois.dtype), boxes, output_size, scale, sampling_ratio, aligned)
    return pooled.unflatten(0, (batch, count)).to(features[0].dtype)
