"""RoIAlign over a feature pyramid, in plain PyTorch: the definition."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align

FINEST_STRIDE = 4
OUTSIDE = -1e6  # a box at this corner lies outside of every map: it gives zeros


def assign_levels(rois: Tensor, canonical_size: float = 224.0, inclusive: bool = False) -> Tensor:
    """Level 0..3 (P2..P5) of boxes [..., 4]: clip(floor(2 + log2(sqrt(w h) / canonical + 1e-6)), 0, 3).

    Written as comparisons with 1/2, 1 and 2 instead of a logarithm, so that every executor rounds alike. Inverted boxes
    count as empty (level 0). `inclusive` adds 1 to width and height, the legacy convention. (FPN, CVPR 2017, eq. 1)
    """
    extra = 1.0 if inclusive else 0.0
    width = (rois[..., 2] - rois[..., 0] + extra).clamp(min=0)
    height = (rois[..., 3] - rois[..., 1] + extra).clamp(min=0)
    ratio = (width * height).sqrt() / canonical_size + 1e-6
    return (ratio >= 0.5).long() + (ratio >= 1).long() + (ratio >= 2).long()


def without_nonfinite(rois: Tensor) -> Tensor:
    """Boxes [..., 4] with a NaN or infinite coordinate replaced by one that gives zeros."""
    return rois.where(rois.isfinite().all(dim=-1, keepdim=True), rois.new_full((), OUTSIDE))


def roi_align_fpn(
    features: Sequence[Tensor],
    rois: Tensor,
    output_size: int,
    sampling_ratio: int = 2,
    aligned: bool = True,
    canonical_size: float = 224.0,
    inclusive: bool = False,
) -> Tensor:
    """See `plugins_cuda.roi_align_fpn`. Every box is pooled on its own level only; differentiable in the features.

    Half types are pooled in float32 and rounded once, float64 in float64.
    """
    batch, count = rois.shape[:2]
    channels = features[0].shape[1]
    rois = without_nonfinite(rois.to(torch.promote_types(features[0].dtype, torch.float32)))
    level = assign_levels(rois.float(), canonical_size, inclusive)
    pooled = features[0].new_zeros(batch, count, channels, output_size, output_size)
    for index, feature in enumerate(features):
        image, row = torch.nonzero(level == index, as_tuple=True)
        boxes = torch.cat([image[:, None].to(rois.dtype), rois[image, row]], dim=1)
        scale = 1.0 / (FINEST_STRIDE * 2**index)
        part = roi_align(feature.to(rois.dtype), boxes, output_size, scale, sampling_ratio, aligned)
        pooled[image, row] = part.to(pooled.dtype)
    return pooled
