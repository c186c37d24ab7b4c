"""The normalisation of a convolution outside the backbone: none, of groups of channels, or of the batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from training.model_config import TOP_STRIDE, Norm

GROUPS = 32  # Wu and He, ECCV 2018; fewer where they do not divide the channels


def make_norm(kind: Norm, channels: int) -> nn.Module:
    """The layer after a convolution of so many output channels, for `normalise`. `batch` is one over the batches of all
    processes (see training/batch_norm.py), and the exporter folds it into the convolution."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return GroupNorm(groups_of(channels), channels) if kind == "group" else nn.Identity()


def groups_of(channels: int) -> int:
    """Into how many a GroupNorm shares so many channels."""
    return math.gcd(GROUPS, channels)


def normalise(norm: nn.Module, x: Tensor, sizes: Tensor, stride: int) -> Tensor:
    """A layer of `make_norm` on x [B, C, H / stride, W / stride] of images of `sizes` [B, 2] inside the padding."""
    return norm(x, sizes, stride) if isinstance(norm, GroupNorm) else norm(x)


class RoiNorm(nn.GroupNorm):
    """GroupNorm over the whole maps x [N, C, h, w], as RoIs have no padding; in float32, also under autocast and where
    a network is exported in half precision: CUDA has no kernel for features of another type than the weights."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


class GroupNorm(nn.GroupNorm):
    """GroupNorm (Wu and He, ECCV 2018) over the image and the padding that it has when it is alone.

    That padding, up to multiples of 32 pixels, belongs to the mean and the variance, as in the networks that detectron2
    trained; the rest, which an image has because of its batch, does not. All in float32, also under autocast.
    """

    def forward(self, x: Tensor, sizes: Tensor, stride: int) -> Tensor:  # type: ignore[override]
        """x [B, C, H / stride, W / stride]; sizes [B, 2], height and width inside the padding, network pixels."""
        with torch.autocast(x.device.type, enabled=False):
            return self._normal(x.float(), sizes, stride).to(x.dtype)

    def _normal(self, x: Tensor, sizes: Tensor, stride: int) -> Tensor:
        cells = (sizes + TOP_STRIDE - 1) // TOP_STRIDE * (TOP_STRIDE // stride)
        rows, columns = (
            (torch.arange(length, device=x.device) < cells[:, axis : axis + 1]).float()
            for axis, length in enumerate(x.shape[2:])
        )
        inside = rows[:, None, :, None] * columns[:, None, None, :]
        count = cells.prod(dim=1).reshape(-1, 1, 1, 1) * (self.num_channels // self.num_groups)

        def mean(values: Tensor) -> Tensor:
            """[B, C, 1, 1], of each channel's group. No product of matrices: TensorRT would give it a type, and a GPU
            could not add what it multiplies in one pass."""
            sums = (values * inside).sum(dim=(2, 3))
            grouped = sums.reshape(-1, self.num_groups, self.num_channels // self.num_groups, 1)
            return (grouped.sum(dim=2, keepdim=True) / count).expand_as(grouped).reshape(-1, self.num_channels, 1, 1)

        centred = x - mean(x)
        scale = self.weight.float()[:, None, None] * torch.rsqrt(mean(centred.square()) + self.eps)
        return centred * scale + self.bias.float()[:, None, None]
