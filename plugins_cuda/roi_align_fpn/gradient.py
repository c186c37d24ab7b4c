"""RoIAlign over a feature pyramid with a gradient: on a CPU one embedding bag over the pixels of all levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from plugins_cuda.roi_align_fpn import reference
from plugins_cuda.roi_align_fpn.reference import FINEST_STRIDE, assign_levels, countable, without_nonfinite
from plugins_cuda.sampling import bag_sum, corners, pixel_table, ragged_bag_sum

OUTSIDE = -2.0  # the coordinate of a sample that does not count


def roi_align_fpn(
    features: Sequence[Tensor],
    rois: Tensor,
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
    inclusive: bool,
    rounded_levels: bool = False,
) -> Tensor:
    """See `reference`, which computes on a GPU. In float32, or in float64 for such features."""
    if rois.device.type != "cpu":
        return reference.roi_align_fpn(features, rois, output_size, sampling_ratio, aligned, inclusive, rounded_levels)
    batch, count = rois.shape[:2]
    rois = without_nonfinite(rois.detach().float())
    level = assign_levels(rois, inclusive, rounded_levels)
    wide = torch.promote_types(features[0].dtype, torch.float32)
    rois = (rois if sampling_ratio else countable(rois)).to(wide)
    shapes = torch.tensor([feature.shape[2:] for feature in features], device=rois.device)
    lengths = shapes[level]
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
    x, y = (
        _samples(corner[..., axis], size[..., axis], lengths[..., 1 - axis], output_size, sampling_ratio)
        for axis in (0, 1)
    )
    table = pixel_table([feature.to(wide) for feature in features])
    pool = _pool_fixed if sampling_ratio else _pool_counted
    pooled = pool(table, y, x, lengths, first)
    return pooled.reshape(batch, count, output_size, output_size, table.shape[1]).permute(0, 1, 4, 2, 3)


class _Samples(NamedTuple):
    """Of boxes along one axis."""

    at: Tensor  # [B, R, bins, samples]: coordinates, drawn to the border, or OUTSIDE
    counts: Tensor  # [B, R], of a bin


def _samples(low: Tensor, size: Tensor, length: Tensor, output_size: int, sampling_ratio: int) -> _Samples:
    """Rounded like torchvision's: the value jumps at the border."""
    bin_size = size / output_size
    counts = torch.full_like(low, sampling_ratio) if sampling_ratio else bin_size.ceil().clamp(min=0)
    most = sampling_ratio or int(torch.cat([counts.flatten(), counts.new_ones(1)]).amax())
    bins = torch.arange(output_size, dtype=low.dtype)[:, None]
    middles = torch.arange(most, dtype=low.dtype) + 0.5
    low, bin_size, length, of_bin = (each[..., None, None] for each in (low, bin_size, length, counts))
    at = low + bins * bin_size + middles * bin_size / of_bin
    inside = (at >= -1) & (at <= length) & (middles < of_bin)
    return _Samples(at.clamp(min=0).minimum(length - 1).where(inside, OUTSIDE), counts)


def _pool_fixed(table: Tensor, y: _Samples, x: _Samples, lengths: Tensor, first: Tensor) -> Tensor:
    """Four pixels a sample, the same number of samples in every bin: [B * R * bins, C]."""
    height, width, first = (each[..., None, None] for each in (*lengths.unbind(-1), first))
    rows, weights = corners(y.at.flatten(2)[..., :, None], x.at.flatten(2)[..., None, :], height, width, first)
    rows = rows * (weights != 0)  # nothing of a pixel that a sample ends at: it may be infinite
    bins, samples = y.at.shape[2:]

    def by_bin(values: Tensor) -> Tensor:
        """[B, R, samples, samples, 4] -> [B * R * bins, samples of a bin * 4]."""
        split = values.unflatten(3, (bins, samples)).unflatten(2, (bins, samples))
        return split.permute(0, 1, 2, 4, 3, 5, 6).reshape(-1, 4 * samples**2)

    return bag_sum(table, by_bin(rows), by_bin(weights) / samples**2)


def _pool_counted(table: Tensor, y: _Samples, x: _Samples, lengths: Tensor, first: Tensor) -> Tensor:
    """As many pixels as a bin has under its samples, each once: [B * R * bins, C]."""
    bins = y.at.shape[2]
    (top, heights, vertical), (left, widths, horizontal) = (_taps(each) for each in (y, x))
    boxes = torch.arange(first.numel()).view(-1, 1, 1)
    row, column = (
        each.expand(-1, bins, bins).flatten()
        for each in (boxes * bins + torch.arange(bins)[:, None], boxes * bins + torch.arange(bins))
    )
    sizes = heights[row] * widths[column]
    bag = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    within = torch.arange(len(bag)) - (sizes.cumsum(0) - sizes)[bag]
    row, column = row[bag], column[bag]
    down, across = within // widths[column], within % widths[column]
    weights = vertical[row, down] * horizontal[column, across]
    box = row // bins
    width = lengths[..., 1].flatten()[box]
    rows = first.flatten()[box] + (top[row] + down) * width + left[column] + across
    return ragged_bag_sum(table, rows * (weights != 0), weights, sizes)


def _taps(samples: _Samples) -> tuple[Tensor, Tensor, Tensor]:
    """Of every bin of every box, along one axis: its first pixel [n], how many it has [n], and their weights
    [n, most]. Samples lie at most a pixel apart, so that the pixels are neighbours."""
    at = samples.at.flatten(0, 2)
    inside = at != OUTSIDE
    low = at.floor()
    after = at - low
    first = low.where(inside, torch.inf).amin(1)
    first = first.where(first.isfinite(), 0)
    index = (low - first[:, None]).clamp(min=0).long()
    share = inside / samples.counts.flatten().repeat_interleave(samples.at.shape[2])[:, None]
    weights = at.new_zeros(len(at), at.shape[1] + 2)
    weights.scatter_add_(1, index, ((1 - after) * share).where(inside, 0))
    weights.scatter_add_(1, index + 1, (after * share).where(inside, 0))
    return first.long(), ((index + 1 + (after > 0)) * inside).amax(1), weights
