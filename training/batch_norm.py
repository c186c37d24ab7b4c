"""Batch normalisation over the global batch, whatever the number of processes.

On GPUs PyTorch's SyncBatchNorm does it (and timm's variant, where the activation is part of the layer). It has no CPU
kernels, so over gloo the few layers of a small network talk to each other in plain PyTorch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from training.distributed import Process


def synchronise(model: nn.Module, process: Process) -> None:
    """Make every BatchNorm inside `model` one over all processes, in place: same parameters, buffers and names."""
    if process.world == 1:
        return
    from timm.layers.norm_act import BatchNormAct2d, convert_sync_batchnorm  # seconds: only where it is needed

    if process.device.type == "cuda":
        convert_sync_batchnorm(model)
        return
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, BatchNormAct2d):
                setattr(parent, name, GlobalBatchNorm(child, nn.Sequential(child.drop, child.act)))
            elif isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, GlobalBatchNorm(child, nn.Identity()))


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
        """In two passes: the mean of squares minus the squared mean would lose the digits that the variance is in."""
        wide = x.float()
        count = all_reduce(wide.new_tensor(x.numel() / x.shape[1]))
        mean = all_reduce(wide.sum((0, 2, 3))) / count
        centred = wide - mean[:, None, None]
        variance = all_reduce(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
            assert self.momentum is not None
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)
