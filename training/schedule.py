"""The optimizer's parameter groups and the learning rate of every step."""

from __future__ import annotations

import math

import torch
from torch import nn

from training.config import ScheduleConfig

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm, nn.LayerNorm)


def base_lr(schedule: ScheduleConfig) -> float:
    """The learning rate after the warm-up: what the configuration says, else .00125 an image of the global batch."""
    return schedule.lr if schedule.lr is not None else 0.00125 * schedule.images_per_step


def lr_factor(step: int, schedule: ScheduleConfig) -> float:
    """What the base learning rate is multiplied by at `step` (0-based).

    A linear warm-up from .1 to 1 over `warmup` steps, times the policy: x.1 from each step in `decay` on, or half a
    cosine from the end of the warm-up to 0 at the end of the run (Loshchilov & Hutter, ICLR 2017, without restarts).
    """
    warmup = 0.1 + 0.9 * step / schedule.warmup if step < schedule.warmup else 1.0
    if schedule.policy == "step":
        return warmup * 0.1 ** sum(step >= round(ratio * schedule.iterations) for ratio in schedule.decay)
    progress = max(step - schedule.warmup, 0) / max(schedule.iterations - schedule.warmup, 1)
    return warmup * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


def parameter_groups(model: nn.Module, schedule: ScheduleConfig) -> list[dict]:
    """Three groups, each with `lr_scale`: weights, norm weights, biases (those of norms included).

    SGD (the published rule): biases learn twice as fast and do not decay. AdamW: neither biases nor norms decay.
    """
    weights: list[nn.Parameter] = []
    norms: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter in seen or not parameter.requires_grad:
                continue
            seen.add(parameter)
            group = biases if name.endswith("bias") else norms if isinstance(module, NORMS) else weights
            group.append(parameter)
    sgd, decay = schedule.optimizer == "sgd", schedule.weight_decay
    groups = [
        {"params": weights, "weight_decay": decay, "lr_scale": 1.0},
        {"params": norms, "weight_decay": decay if sgd else 0.0, "lr_scale": 1.0},
        {"params": biases, "weight_decay": 0.0, "lr_scale": 2.0 if sgd else 1.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, schedule: ScheduleConfig) -> torch.optim.Optimizer:
    groups = parameter_groups(model, schedule)
    if schedule.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=base_lr(schedule), momentum=schedule.momentum)
    return torch.optim.AdamW(groups, lr=base_lr(schedule), fused=True)


def set_lr(optimizer: torch.optim.Optimizer, step: int, schedule: ScheduleConfig) -> float:
    """Give every group its learning rate for `step` (0-based); returns the one of the weights."""
    lr = base_lr(schedule) * lr_factor(step, schedule)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    return lr
