"""Batch normalisation over the global batch, whatever the number of processes, on GPUs and on CPUs.

PyTorch's SyncBatchNorm has no CPU kernels, and on GPUs each layer waits for the device three times, to leave out
processes without an image. Here every process has images.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from training.distributed import Process


def synchronise(model: nn.Module, process: Process) -> None:
    """Make every BatchNorm inside `model` one over all processes, in place: same parameters, buffers and names."""
    if process.world == 1:
        return
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, BatchNormAct2d):
                setattr(parent, name, GlobalBatchNorm(child, nn.Sequential(child.drop, child.act)))
            elif isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, GlobalBatchNorm(child, nn.Identity()))


class Normalised(torch.autograd.Function):
    """apply(x [B, C, H, W], weight [C], bias [C], eps) -> x normalised, in its type; mean [C] and variance [C] of all
    processes' x, biased, and how many values of a channel there were. float32 inside.

    Each process's loss depends on everyone's x, so what the statistics pass back is summed over the processes. Between
    the passes x alone is kept, as PyTorch's own layers do.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The variance is that inside the processes and that between them: the mean of squares minus the squared mean
        would lose the digits that it is in."""
        variance, mean = torch.var_mean(x.float(), dim=(0, 2, 3), correction=0)
        own = mean.new_full((1,), x.numel() / x.shape[1])
        total = everyones(torch.cat([own, own * mean]))
        count, average = total[0], total[1:] / total[0]
        variance = everyones(own * (variance + (mean - average).square())) / count
        ctx.save_for_backward(x, weight, average, torch.rsqrt(variance + eps), count)
        ctx.mark_non_differentiable(average, variance, count)
        normalised = F.batch_norm(x, average, variance, weight, bias, eps=eps)
        return normalised, average, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, scale, count = ctx.saved_tensors
        centred, gradient = x.float() - mean[:, None, None], gradient.float()
        of_bias = gradient.sum((0, 2, 3))
        of_weight = (gradient * centred).sum((0, 2, 3)) * scale
        shift, slope = (everyones(torch.cat([of_bias, of_weight])) / count).chunk(2)
        of_x = (gradient - shift[:, None, None] - centred * (slope * scale)[:, None, None]).mul_(
            (weight * scale)[:, None, None]
        )
        return of_x.to(x.dtype), of_weight, of_bias, None


def everyones(x: Tensor) -> Tensor:
    """The sum of all processes' x."""
    total = x.clone()
    dist.all_reduce(total)
    return total


class GlobalBatchNorm(nn.BatchNorm2d):
    """BatchNorm2d of B x C x H x W whose mean and variance are those of all processes' batches together."""

    def __init__(self, norm: nn.BatchNorm2d, activation: nn.Module) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.activation = activation
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self._global(x) if self.training else super().forward(x))

    def _global(self, x: Tensor) -> Tensor:
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        normalised, mean, variance, count = Normalised.apply(x, self.weight, self.bias, self.eps)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        return normalised
