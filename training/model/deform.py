"""A deformable 3x3 convolution with its own zero-initialised offset convolution (Dai et al., ICCV 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import plugins_cuda


class DeformConv(nn.Module):
    """B x C x H x W -> B x O x H/stride x W/stride. At initialisation it equals an ordinary convolution.

    Offsets and bias are float32 whatever the type of the features and weights: half precision would move the samples.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.stride = stride
        self.conv_offset = nn.Conv2d(in_channels, 18, 3, stride, padding=1)
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.bias)  # type: ignore[arg-type]
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 3, 3))
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        offset = self.conv_offset(x).float()
        bias = offset.new_zeros(self.weight.shape[0]) if self.bias is None else self.bias
        weight = self.weight.to(x.dtype)  # under autocast the features are narrower than the weights
        return plugins_cuda.deform_conv(x, offset, weight, bias, stride=self.stride, padding=1, dilation=1)
