"""Deformable convolution with a gradient: v1 of one group on a CPU is embedding bags and one matrix product."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
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
    """See `reference`, which computes on a GPU, with a mask and with groups. In float32; float64 for such an x."""
    taps = weight.shape[2] * weight.shape[3]
    one_group = x.shape[1] == weight.shape[1] and offset.shape[1] == 2 * taps
    if x.device.type != "cpu" or mask is not None or not one_group:
        return reference.deform_conv(x, offset, weight, bias, stride, padding, dilation, mask)
    wide = torch.promote_types(x.dtype, torch.float32)
    x, weight, offset = x.to(wide), weight.to(wide), reference.finite_offset(offset.to(wide))
    batch, _, height, width = x.shape
    taps_y, taps_x = weight.shape[2:]
    out_h, out_w = offset.shape[2:]
    shift = offset.reshape(batch, taps_y, taps_x, 2, out_h, out_w).permute(3, 0, 4, 5, 1, 2)

    def grid(axis: int, length: int, taps: int) -> Tensor:
        """[length, taps]: where the taps lie without an offset."""
        step, before, apart = stride[axis], padding[axis], dilation[axis]
        place = torch.arange(length, device=x.device) * step - before
        return place[:, None] + torch.arange(taps, device=x.device) * apart

    y = shift[0] + grid(0, out_h, taps_y)[:, None, :, None]
    column = shift[1] + grid(1, out_w, taps_x)[:, None, :]
    image = torch.arange(batch, device=x.device).reshape(-1, 1, 1, 1, 1)
    rows, weights = corners(y, column, height, width, 1 + image * (1 + height * width))
    samples = bag_sum(pixel_table([x]), rows.reshape(-1, 4), weights.reshape(-1, 4))
    kernel = weight.permute(0, 2, 3, 1).flatten(1)
    out = F.linear(
        samples.reshape(batch, out_h * out_w, kernel.shape[1]), kernel, None if bias is None else bias.to(wide)
    )
    return out.transpose(1, 2).unflatten(2, (out_h, out_w))
