"""Deformable convolution v1 and v2, in plain torchvision: the definition."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import deform_conv2d

Pair = int | Sequence[int]
OFF_THE_MAP = 1e9  # pixels


def finite_offset(offset: Tensor) -> Tensor:
    """Offsets that are NaN or infinite, replaced by one that samples zero: torchvision does not survive a NaN."""
    return offset.nan_to_num(OFF_THE_MAP, OFF_THE_MAP, -OFF_THE_MAP)


def deform_conv(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 1,
    dilation: Pair = 1,
    mask: Tensor | None = None,
) -> Tensor:
    """Convolution whose taps are shifted by an offset field (Dai et al., ICCV 2017) and, v2, weighted by a modulation
    mask (Zhu et al., CVPR 2019).

    x: [B, C, H, W] of a floating type; contiguous or channels_last.
    offset: [B, 2 G kh kw, Ho, Wo] in pixels of x, (dy, dx) of every tap, row by row, for each of G offset groups.
    weight: [O, C / groups, kh, kw], type of x. bias: [O] or None.
    stride, padding, dilation: one number, or (vertical, horizontal). mask: [B, G kh kw, Ho, Wo] or None (v1).
    Samples are bilinear, zero outside the map; a NaN or infinite offset samples zero and gets no gradient. Offsets,
    mask, bias, sampling and sums are float32 whatever the type of x (float64 for a float64 x), also under autocast; for
    16-bit types the compiled operators round the samples to it before the product.
    Returns [B, O, Ho, Wo] in the type and memory format of x. ValueError when the tensors do not belong together.
    """

    def pair(value: Pair) -> tuple[int, int]:
        return (value, value) if isinstance(value, int) else (value[0], value[1])

    wide = torch.promote_types(x.dtype, torch.float32)
    bias, mask = (None if tensor is None else tensor.to(wide) for tensor in (bias, mask))
    steps = {"stride": pair(stride), "padding": pair(padding), "dilation": pair(dilation)}
    offset = finite_offset(offset.to(wide))
    return deform_conv2d(x.to(wide), offset, weight.to(wide), bias, mask=mask, **steps).to(x.dtype)
