"""The gradient of deformable convolution v1 and v2: two matrix products, and what lies between them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plugins_cuda.deform_conv.columns import deform_conv_columns

SAMPLES = 1 << 27  # there at a time, where an image has no more; and as many gradients of theirs


def deform_conv_backward(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    grad_output: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(grad_x, grad_offset, grad_weight, grad_mask) of deform_conv, whose arguments these are; grad_output: [B, O, Ho,
    Wo] of x's type. grad_x and grad_weight are of x's type, the others float32, or float64 for such an x; grad_mask has
    no elements where there is no mask.

    A few images at a time, so that their samples alone are there: at 256 channels, 3 x 3, one of 200 x 336 has 310 MB
    of them in 16 bits, and as many of their gradients. No step copies them where groups is 1.
    """
    groups, taps, depth = x.shape[1] // weight.shape[1], weight.shape[2] * weight.shape[3], weight.shape[1]
    rows = weight.unflatten(0, (groups, -1)).flatten(3).transpose(2, 3).flatten(2)  # [groups, O / groups, taps D]
    wide = torch.promote_types(x.dtype, torch.float32)
    grad_rows = torch.zeros(rows.shape, dtype=wide, device=x.device)
    steps = weight.shape[2:], stride, padding, dilation, torch.are_deterministic_algorithms_enabled()
    places = grad_output.shape[2] * grad_output.shape[3]
    results = []
    at_once = max(1, SAMPLES // max(1, places * taps * x.shape[1]))
    for first in range(0, len(x), at_once):
        images = slice(first, first + at_once)
        grad = grad_output[images].flatten(2).unflatten(1, (groups, -1))  # [B, groups, O / groups, Ho Wo]
        grad_columns = (grad.transpose(2, 3) @ rows).unflatten(3, (taps, depth)).permute(0, 2, 3, 1, 4).flatten(3)
        columns, *others = deform_conv_columns(
            x[images],
            offset[images],
            None if mask is None else mask[images],
            grad_columns.unflatten(1, grad_output.shape[2:]),
            *steps,
        )
        columns = columns.flatten(1, 2).unflatten(3, (groups, depth)).permute(0, 3, 1, 2, 4).flatten(3)
        grad_rows += (grad @ columns).sum(0, dtype=wide)
        results.append(others)
    if not results:
        none = offset.new_zeros(0) if mask is None else torch.zeros_like(mask)
        return torch.zeros_like(x), torch.zeros_like(offset), torch.zeros_like(weight), none
    grad_x, grad_offset, grad_mask = (
        parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*results, strict=True)
    )
    grad_weight = grad_rows.unflatten(2, (taps, depth)).transpose(2, 3).reshape(weight.shape)
    return grad_x, grad_offset, grad_weight, grad_mask
