"""The gradient of a deformable convolution between its two matrix products, in plain PyTorch: the definition."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plugins_cuda.deform_conv.reference import finite_offset


def deform_conv_columns(
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    grad_columns: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(columns, grad_x, grad_offset, grad_mask) of the samples of a deformable convolution.

    x, offset, mask and the pairs: as deform_conv has them. grad_columns: [B, Ho, Wo, kh kw, C] of x's type, the
    gradient of the samples that went into the product. columns: [B, Ho, Wo, kh kw, C] of x's type, these samples.
    grad_x: as x.
    grad_offset, grad_mask: as offset and mask (without a mask: no elements), float32, or float64 for such an x.
    deterministic: the sums of grad_x in the same order each time.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    batch, channels, height, width = x.shape
    out_h, out_w, taps = grad_columns.shape[1:4]
    groups = offset.shape[1] // (2 * taps)
    # [B, Ho, Wo, K, G, 1], and the channels of a group last
    shift = finite_offset(offset.to(wide)).reshape(batch, groups, taps, 2, out_h, out_w).permute(3, 0, 4, 5, 2, 1)
    scale = (
        x.new_ones((), dtype=wide)
        if mask is None
        else mask.to(wide).unflatten(1, (groups, taps)).permute(0, 3, 4, 2, 1)[..., None]
    )
    grad = grad_columns.to(wide).unflatten(4, (groups, -1))
    pixels = x.to(wide).reshape(batch, groups, channels // groups, -1).permute(0, 3, 1, 2)  # [B, H W, G, C / G]
    tap = torch.arange(taps, device=x.device)
    places = [
        torch.arange(length, device=x.device)[:, None] * step - before + index * apart
        for length, step, before, index, apart in zip(
            (out_h, out_w), stride, padding, (tap // kernel_size[1], tap % kernel_size[1]), dilation, strict=True
        )
    ]
    y, column = shift[0] + places[0][:, None, :, None], shift[1] + places[1][:, :, None]
    image = torch.arange(batch, device=x.device).reshape(-1, 1, 1, 1, 1)
    group = torch.arange(groups, device=x.device)
    sample, down, across = (torch.zeros_like(grad) for _ in range(3))
    grad_x = torch.zeros_like(pixels)
    for row, vertical, slope_y, inside_y in _sides(y, height):
        for col, horizontal, slope_x, inside_x in _sides(column, width):
            inside = inside_y & inside_x
            at = (image, torch.where(inside, row * width + col, 0), group)
            value = pixels[at].where(inside[..., None], 0) if pixels.numel() else grad * 0
            weight = (vertical * horizontal)[..., None]
            sample = sample + weight * value
            down = down + (slope_y * horizontal)[..., None] * value
            across = across + (vertical * slope_x)[..., None] * value
            grad_x.index_put_(at, (weight * scale * grad).where(inside[..., None], 0), accumulate=True)
    grad_offset = torch.stack([(scale * grad * slope).sum(-1) for slope in (down, across)], -1)  # [B, Ho, Wo, K, G, 2]
    grad_offset = grad_offset.permute(0, 4, 3, 5, 1, 2).reshape(offset.shape)
    grad_mask = grad_offset.new_empty(0)
    if mask is not None:
        grad_mask = (grad * sample).sum(-1).permute(0, 4, 3, 1, 2).reshape(mask.shape)
    columns = (scale * sample).flatten(4).to(x.dtype)
    return columns, grad_x.permute(0, 2, 3, 1).reshape(x.shape).to(x.dtype), grad_offset, grad_mask


def _sides(at: Tensor, length: int) -> list[tuple[Tensor, Tensor, float, Tensor]]:
    """Along one axis, the pixels before and after a coordinate: index, weight, its slope, whether it is on the map."""
    low = at.floor()
    after = at - low
    low = low.clamp(-2, length + 1).long()
    return [
        (index, weight, slope, (index >= 0) & (index < length))
        for index, weight, slope in ((low, 1 - after, -1.0), (low + 1, after, 1.0))
    ]
