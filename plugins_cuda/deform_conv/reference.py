"""Deformable convolution v1, in plain torchvision: the definition."""

from __future__ import annotations

from torch import Tensor
from torchvision.ops import deform_conv2d


def deform_conv(
    x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, dilation: int
) -> Tensor:
    """See `plugins_cuda.deform_conv`. Differentiable in every tensor."""
    return deform_conv2d(x, offset, weight, bias, stride=stride, padding=padding, dilation=dilation)
