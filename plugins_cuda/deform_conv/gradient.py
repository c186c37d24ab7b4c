"""Deformable convolution with a gradient: v1 on a CPU is embedding bags and one matrix product."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plugins_cuda.deform_conv import reference
from plugins_cuda.sampling import bag_sum, corners, pixel_table


def deform_conv(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    mask: Tensor | None,
) -> Tensor:
    """See `reference`, which computes on a GPU, with a mask and with groups. An embedding bag takes one type alone: not
    half features with float32 offsets, as under autocast."""
    taps = weight.shape[2] * weight.shape[3]
    one_group = x.shape[1] == weight.shape[1] and offset.shape[1] == 2 * taps
    if x.device.type != "cpu" or x.dtype != offset.dtype or mask is not None or not one_group:
        return reference.deform_conv(x, offset, weight, bias, stride, padding, dilation, mask)
    batch, channels, height, width = x.shape
    out_channels, _, taps_y, taps_x = weight.shape
    out_h, out_w = offset.shape[2:]
    shift = offset.reshape(batch, taps_y, taps_x, 2, out_h, out_w).permute(3, 0, 4, 5, 1, 2)

    def grid(axis: int, length: int, taps: int) -> Tensor:
        """[length, taps]: where the taps lie without an offset."""
        step, before, apart = stride[axis], padding[axis], dilation[axis]
        place = torch.arange(length, device=x.device) * step - before
        return place[:, None] + torch.arange(taps, device=x.device) * apart

    y = shift[0] + grid(0, out_h, taps_y)[:, None, :, None]
    column = shift[1] + grid(1, out_w, taps_x)[:, None, :]
    rows, weights = corners(y, column, height, width)
    image = torch.arange(batch, device=x.device).reshape(-1, 1, 1, 1, 1, 1)
    samples = bag_sum(pixel_table(x), (rows + image * height * width).reshape(-1, 4), weights.reshape(-1, 4))
    kernel = weight.permute(2, 3, 1, 0).reshape(-1, out_channels)
    out = samples.reshape(-1, taps_y * taps_x * channels) @ kernel
    if bias is not None:
        out = out + bias
    return out.reshape(batch, out_h, out_w, out_channels).permute(0, 3, 1, 2)
