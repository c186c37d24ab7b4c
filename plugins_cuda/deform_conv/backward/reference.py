"""The gradient of deformable convolution v1 and v2: two matrix products, and what lies between them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plugins_cuda.deform_conv.columns import deform_conv_columns


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

    One image after the other, so that the columns of one are there at a time.
    """
    groups, kernel = x.shape[1] // weight.shape[1], weight.shape[2:]
    # [groups, O / groups, kh kw D]
    rows = weight.unflatten(0, (groups, -1)).flatten(3).transpose(2, 3).flatten(2)
    deterministic = torch.are_deterministic_algorithms_enabled()
    grad_rows = torch.zeros(rows.shape, dtype=offset.dtype, device=x.device)
    results = []
    for image in range(len(x)):
        one = slice(image, image + 1)
        grad = grad_output[image].reshape(groups, rows.shape[1], -1)  # [groups, O / groups, Ho Wo]
        grad_columns = grad.transpose(1, 2) @ rows
        grad_columns = grad_columns.unflatten(2, (kernel.numel(), -1)).permute(1, 2, 0, 3).flatten(2)
        columns, *others = deform_conv_columns(
            x[one], offset[one], None if mask is None else mask[one],
            grad_columns.reshape(1, *grad_output.shape[2:], *grad_columns.shape[1:]),
            kernel, stride, padding, dilation, deterministic,
        )  # fmt: skip
        columns = columns.reshape(-1, kernel.numel(), groups, weight.shape[1]).permute(2, 0, 1, 3).flatten(2)
        grad_rows += grad @ columns
        results.append(others)
    if not results:
        return torch.zeros_like(x), torch.zeros_like(offset), torch.zeros_like(weight), offset.new_zeros(0)
    grad_x, grad_offset, grad_mask = map(torch.cat, zip(*results, strict=True))
    grad_weight = grad_rows.unflatten(2, (kernel.numel(), -1)).transpose(2, 3).reshape(weight.shape)
    return grad_x, grad_offset, grad_weight, grad_mask
