"""Deformable convolution v1 and v2, in plain torchvision: the definition."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import deform_conv2d


def deform_conv(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    mask: Tensor | None = None,
) -> Tensor:
    """See `plugins_cuda.deform_conv`. Computed in float32 (float64 for a float64 x); differentiable in every tensor."""

    def pair(value: int | Sequence[int]) -> tuple[int, int]:
        return (value, value) if isinstance(value, int) else (value[0], value[1])

    wide = torch.promote_types(x.dtype, torch.float32)
    bias, mask = (None if tensor is None else tensor.to(wide) for tensor in (bias, mask))
    steps = {"stride": pair(stride), "padding": pair(padding), "dilation": pair(dilation)}
    return deform_conv2d(x.to(wide), offset.to(wide), weight.to(wide), bias, mask=mask, **steps).to(x.dtype)
