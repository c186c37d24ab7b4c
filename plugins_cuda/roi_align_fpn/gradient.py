"""RoIAlign over a feature pyramid with a gradient: on a CPU one embedding bag over the pixels of all levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plugins_cuda.roi_align_fpn import reference
from plugins_cuda.roi_align_fpn.reference import FINEST_STRIDE, assign_levels, without_nonfinite
from plugins_cuda.sampling import bag_sum, corners, pixel_table


def roi_align_fpn(
    features: Sequence[Tensor],
    rois: Tensor,
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
    inclusive: bool,
    level_epsilon: float,
) -> Tensor:
    """See `reference`, which computes on a GPU and where every box has its own number of samples. In float32, or in
    float64 for such features."""
    if rois.device.type != "cpu" or sampling_ratio == 0:
        return reference.roi_align_fpn(features, rois, output_size, sampling_ratio, aligned, inclusive, level_epsilon)
    batch, count = rois.shape[:2]
    rois = without_nonfinite(rois.detach().float())
    level = assign_levels(rois, inclusive, level_epsilon)
    wide = torch.promote_types(features[0].dtype, torch.float32)
    rois = rois.to(wide)
    shapes = torch.tensor([feature.shape[2:] for feature in features], device=rois.device)
    height, width = shapes[level].unbind(-1)
    # Row of the table where the map of a box's level and image begins.
    ends = 1 + shapes.prod(1).cumsum(0)
    starts = torch.cat([ends.new_ones(1), ends[:-1]])
    image = torch.arange(batch, device=rois.device)[:, None]
    first = starts[level] + image * ends[-1]

    scale = 1.0 / (FINEST_STRIDE * 2.0 ** level.to(rois.dtype))
    corner = rois * scale[..., None] - (0.5 if aligned else 0.0)
    size = corner[..., 2:] - corner[..., :2]
    if not aligned:
        size = size.clamp(min=1)
    bins = torch.arange(output_size, device=rois.device, dtype=rois.dtype)[:, None]
    middles = torch.arange(sampling_ratio, device=rois.device, dtype=rois.dtype) + 0.5

    def points(low: Tensor, extent: Tensor, length: Tensor) -> Tensor:
        """[B, R, samples]: coordinates, drawn to the border, or outside where they do not count at all. Rounded like
        torchvision's: the value jumps at the border."""
        bin_size = (extent / output_size)[..., None, None]
        at = (low[..., None, None] + bins * bin_size + middles * bin_size / sampling_ratio).flatten(2)
        counts = (at >= -1) & (at <= length[..., None])
        return at.clamp(min=0).minimum(length[..., None] - 1).where(counts, -2.0)

    def of_box(values: Tensor) -> Tensor:
        return values[..., None, None]

    x, y = points(corner[..., 0], size[..., 0], width), points(corner[..., 1], size[..., 1], height)
    rows, weights = corners(y[..., :, None], x[..., None, :], *map(of_box, (height, width, first)))
    rows = rows * (weights != 0)  # nothing of a pixel that a sample ends at: it may be infinite

    def by_bin(values: Tensor) -> Tensor:
        """[B, R, samples, samples, 4] -> [B * R * bins, samples of a bin * 4]."""
        split = values.unflatten(3, (output_size, sampling_ratio)).unflatten(2, (output_size, sampling_ratio))
        return split.permute(0, 1, 2, 4, 3, 5, 6).reshape(-1, 4 * sampling_ratio**2)

    table = pixel_table([feature.to(wide) for feature in features])
    pooled = bag_sum(table, by_bin(rows), by_bin(weights) / sampling_ratio**2)
    return pooled.reshape(batch, count, output_size, output_size, table.shape[1]).permute(0, 1, 4, 2, 3)
