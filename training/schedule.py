"""What follows from the schedule and the number of processes, the optimizer, and the learning rate of every step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from training.config import ScheduleConfig
from training.model.deform import DeformConv
from upsnet.errors import InputError

if TYPE_CHECKING:  # a step takes place on machines without it, too (gpu_step_check.py)
    from rich.table import Table

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)
LR_OF_AN_IMAGE = 0.00125  # SGD's published .02 at 16 images a step


class Plan(BaseModel):
    """Every number that a run derives from its schedule and its number of processes."""

    model_config = ConfigDict(frozen=True)

    processes: int
    images_per_step: int  # the global batch
    images_per_gpu: int  # in one forward pass
    passes: int  # forward passes of each process before a step: gradient accumulation
    iterations: int
    warmup: int  # steps
    lr: float  # after the warm-up
    decay_steps: tuple[int, ...]  # from each of these steps (0-based) on, the lr is a tenth
    policy: str

    def table(self, title: str, images: int) -> Table:
        """For people, at the start of a run on a data set of `images` images."""
        from rich.box import SIMPLE
        from rich.markup import escape
        from rich.table import Table

        decay = "half a cosine to 0" if self.policy == "cosine" else "constant"
        if self.decay_steps:
            decay = "a tenth from step " + ", ".join(f"{step:,}" for step in self.decay_steps)
        share = f"{self.processes} processes x {self.images_per_gpu} images x {self.passes} passes"
        seen = self.iterations * self.images_per_step
        table = Table(title=escape(title), box=SIMPLE, show_header=False, title_justify="left")
        for name, value in {
            "images a step": f"{self.images_per_step} = {share}",
            "steps": f"{self.iterations:,}",
            "images": f"{seen:,}, {seen / images:.4g} epochs of {images:,}",
            "learning rate": f"{self.lr:.6g}",
            "warm-up": f"{self.warmup:,} steps from a tenth of it" if self.warmup else "none",
            "decay": decay,
        }.items():
            table.add_row(name, value)
        return table


def make_plan(schedule: ScheduleConfig, processes: int, images_per_step: int | None = None) -> Plan:
    """The plan of a run on `processes` processes.

    images_per_step: the global batch of the run that is resumed, which stays whatever the number of processes: so do
    the learning rate and the steps, and the number of forward passes adapts. InputError when it cannot be shared.
    """
    total = images_per_step or schedule.images_per_step or processes * (schedule.images_per_gpu or 1)
    origin = "the resumed run's global batch" if images_per_step else "schedule.images_per_step"
    if total % processes:
        raise InputError(
            f"{origin} {total} cannot be shared equally by {processes} processes; change the number of GPUs"
            + ("" if images_per_step else ", or make it a multiple")
        )
    share = total // processes
    at_once = schedule.images_per_gpu or share
    if share % at_once:
        raise InputError(
            f"schedule.images_per_gpu {at_once} does not divide the {share} images of one process ({origin} {total} on "
            f"{processes} processes); give schedule.images_per_gpu a divisor of {share}"
        )
    iterations = schedule.iterations or math.ceil((schedule.images or 0) / total)
    by_steps = schedule.policy == "step"
    return Plan(
        processes=processes,
        images_per_step=total,
        images_per_gpu=at_once,
        passes=share // at_once,
        iterations=iterations,
        warmup=schedule.warmup,
        lr=schedule.lr if schedule.lr is not None else LR_OF_AN_IMAGE * total,
        decay_steps=tuple(round(ratio * iterations) for ratio in schedule.decay) if by_steps else (),
        policy=schedule.policy,
    )


def lr_factor(step: int, plan: Plan) -> float:
    """What the learning rate is multiplied by at `step` (0-based).

    A linear warm-up from .1 to 1 over `warmup` steps, times the policy: x.1 from each of the decay steps on, or half a
    cosine from the end of the warm-up to 0 at the end of the run (Loshchilov & Hutter, ICLR 2017, without restarts).
    """
    warmup = 0.1 + 0.9 * step / plan.warmup if step < plan.warmup else 1.0
    if plan.policy == "step":
        return warmup * 0.1 ** sum(step >= decay for decay in plan.decay_steps)
    progress = max(step - plan.warmup, 0) / max(plan.iterations - plan.warmup, 1)
    return warmup * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


def parameter_groups(model: nn.Module, schedule: ScheduleConfig) -> list[dict]:
    """Groups, each with `lr_scale`: weights, norm weights, biases (those of norms included), and the offsets' weights
    and biases where these learn at a rate of their own.

    SGD (the published rule): biases learn twice as fast and do not decay. AdamW: neither biases nor norms decay.
    """
    sgd, decay = schedule.optimizer == "sgd", schedule.weight_decay
    kinds = {"weights": (decay, 1.0), "norms": (decay if sgd else 0.0, 1.0), "biases": (0.0, 2.0 if sgd else 1.0)}
    offsets = {id(p) for m in model.modules() if isinstance(m, DeformConv) for p in m.conv_offset.parameters()}
    groups: dict[tuple[str, float], dict] = {}
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter in seen or not parameter.requires_grad:
                continue
            seen.add(parameter)
            kind = "biases" if name.endswith("bias") else "norms" if isinstance(module, NORMS) else "weights"
            decays, rate = kinds[kind]
            share = schedule.offset_lr if id(parameter) in offsets else 1.0
            new = {"params": [], "weight_decay": decays, "lr_scale": rate * share}
            groups.setdefault((kind, share), new)["params"].append(parameter)
    return list(groups.values())


def build_optimizer(model: nn.Module, schedule: ScheduleConfig) -> torch.optim.Optimizer:
    """Its learning rate is set before every step (`set_lr`). The state is there from the start.

    Fused kernels: they alone read on the device that a step is to be left out (`found_inf`, which GradScaler uses too).
    """
    groups = parameter_groups(model, schedule)
    if schedule.optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, lr=0.0, momentum=schedule.momentum, fused=True)
        names = ["momentum_buffer"] if schedule.momentum else []
    else:
        optimizer = torch.optim.AdamW(groups, lr=0.0, fused=True)
        names = ["exp_avg", "exp_avg_sq"]
    for group in groups:
        for parameter in group["params"]:
            # What the optimizer itself would begin with, but for SGD's first momentum: it would be the first gradient,
            # which 0 * momentum + gradient is too; and where the first step is left out it would be undefined.
            state: dict[str, Tensor] = {name: torch.zeros_like(parameter) for name in names}
            if schedule.optimizer == "adamw":
                state["step"] = torch.zeros((), device=parameter.device)
            optimizer.state[parameter] = state
    return optimizer


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's own state tensors as <parameter's name>.<what>: to be saved, or to be copied into."""
    return {
        f"{name}.{what}": tensor
        for name, parameter in model.named_parameters()
        for what, tensor in optimizer.state.get(parameter, {}).items()
    }


def set_lr(optimizer: torch.optim.Optimizer, step: int, plan: Plan) -> float:
    """Give every group its learning rate for `step` (0-based); returns the one of the weights."""
    lr = plan.lr * lr_factor(step, plan)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    return lr
