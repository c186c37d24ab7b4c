"""The gradient of RoIAlign over a feature pyramid, in plain torchvision: the definition."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plugins_cuda.roi_align_fpn.reference import FINEST_STRIDE, OUTSIDE, assign_levels, countable, without_nonfinite


def roi_align_fpn_backward(
    features: Sequence[Tensor],
    rois: Tensor,
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
    inclusive: bool,
    rounded_levels: bool,
    grad_output: Tensor,
) -> tuple[Tensor, ...]:
    """The gradient of every map of `features`, in their type and memory format; the other arguments are those of
    roi_align_fpn, grad_output [B, R, C, S, S] the gradient of its result, of the features' type.

    Sums are float32 (float64 for such features); the kernels add in one order, each time and on each device. Of the
    features only the sizes count.
    """
    batch, count = rois.shape[:2]
    wide = torch.promote_types(features[0].dtype, torch.float32)
    rois = without_nonfinite(rois.float().to(wide))
    level = assign_levels(rois.float(), inclusive, rounded_levels)
    if sampling_ratio == 0:
        rois = countable(rois)
    image = torch.arange(batch, device=rois.device, dtype=wide)[:, None, None].expand(-1, count, -1)
    grad, found = grad_output.to(wide).flatten(0, 1).contiguous(), []
    for index, feature in enumerate(features):
        own = rois.where((level == index)[..., None], OUTSIDE)
        boxes = torch.cat([image, own], dim=2).flatten(0, 1)
        scale = 1.0 / (FINEST_STRIDE * 2**index)
        size = (output_size, output_size, *feature.shape, sampling_ratio, aligned)
        if feature.numel() == 0:
            found.append(torch.zeros_like(feature))
            continue
        result = torch.ops.torchvision._roi_align_backward(grad, boxes, scale, *size)
        found.append(result.to(feature.dtype))
    return tuple(found)
