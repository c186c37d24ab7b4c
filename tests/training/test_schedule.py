"""Learning rates worked out by hand, and which parameter follows which rule."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import nn

from training.config import BoxHeadConfig, FpnConfig, HybridConfig, MaskHeadConfig, ModelConfig, ScheduleConfig
from training.model.upsnet import UPSNet
from training.schedule import build_optimizer, lr_factor, parameter_groups, set_lr

PUBLISHED = ScheduleConfig(iterations=90_000, images_per_step=16, decay=(Fraction(2, 3), Fraction(8, 9)))
COSINE = ScheduleConfig(iterations=2100, images_per_step=8, optimizer="adamw", lr=0.002, warmup=100, policy="cosine")


@pytest.mark.parametrize(
    ("step", "lr"),
    [
        (0, 0.002),
        (750, 0.011),
        (1499, 0.02 * (0.1 + 0.9 * 1499 / 1500)),
        (1500, 0.02),
        (59_999, 0.02),
        (60_000, 0.002),
        (79_999, 0.002),
        (80_000, 0.0002),
        (89_999, 0.0002),
    ],
)
def test_published_schedule(step: int, lr: float) -> None:
    assert PUBLISHED.base_lr * lr_factor(step, PUBLISHED) == pytest.approx(lr, rel=1e-9)


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 0.1), (50, 0.55), (100, 1.0), (600, (1 + math.sqrt(0.5)) / 2), (1100, 0.5), (2100, 0.0)]
)
def test_cosine(step: int, factor: float) -> None:
    assert lr_factor(step, COSINE) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize("policy", ["step", "cosine"])
def test_no_warmup_starts_at_the_full_rate_and_a_warmup_longer_than_the_run_never_reaches_it(policy: str) -> None:
    short = {"iterations": 10, "images_per_step": 1, "policy": policy}
    assert lr_factor(0, ScheduleConfig(**short, warmup=0)) == 1.0
    assert lr_factor(9, ScheduleConfig(**short, warmup=20)) == pytest.approx(0.1 + 0.9 * 9 / 20)


class Everything(nn.Module):
    """One parameter of every kind, one of them used twice and one frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.norm = nn.BatchNorm2d(2)
        self.group_norm = nn.GroupNorm(1, 2)
        self.linear = nn.Linear(2, 2, bias=False)
        self.shared = self.linear
        self.frozen = nn.Linear(2, 2, bias=False).requires_grad_(False)


@pytest.mark.parametrize(("optimizer", "norm_decay", "bias_scale"), [("sgd", 0.1, 2.0), ("adamw", 0.0, 1.0)])
def test_groups(optimizer: str, norm_decay: float, bias_scale: float) -> None:
    model = Everything()
    schedule = ScheduleConfig(iterations=1, images_per_step=1, optimizer=optimizer, weight_decay=0.1)
    rules = {p: (g["weight_decay"], g["lr_scale"]) for g in parameter_groups(model, schedule) for p in g["params"]}
    assert rules == {
        model.conv.weight: (0.1, 1.0),
        model.linear.weight: (0.1, 1.0),
        model.norm.weight: (norm_decay, 1.0),
        model.group_norm.weight: (norm_decay, 1.0),
        model.conv.bias: (0.0, bias_scale),
        model.norm.bias: (0.0, bias_scale),
        model.group_norm.bias: (0.0, bias_scale),
    }


def test_every_parameter_of_the_network_is_in_exactly_one_group() -> None:
    config = ModelConfig(
        backbone=HybridConfig(stem=(4, 4), widths=(4, 4, 4, 4), depths=(1, 1, 1, 1), expansion=1),
        fpn=FpnConfig(channels=8),
        box_head=BoxHeadConfig(hidden=8),
        mask_head=MaskHeadConfig(channels=8, layers=1),
    )
    model = UPSNet(config, num_stuff=2, num_things=3)
    groups = parameter_groups(model, PUBLISHED)
    grouped = [p for g in groups for p in g["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == set(model.parameters())
    assert len(groups) == 3


def test_sgd_step_by_hand() -> None:
    layer = nn.Linear(1, 1)
    schedule = ScheduleConfig(iterations=9, images_per_step=1, lr=0.5, weight_decay=0.1, warmup=0, momentum=0.9)
    optimizer = build_optimizer(layer, schedule)
    with torch.no_grad():
        layer.weight.fill_(2.0)
        layer.bias.fill_(3.0)
    assert set_lr(optimizer, 0, schedule) == 0.5
    for _ in range(2):
        layer.weight.grad, layer.bias.grad = torch.ones(1, 1), torch.ones(1)
        optimizer.step()
    # weight: buffers 1.2, then .9 * 1.2 + (1 + .1 * 1.4) = 2.22; bias at twice the rate: buffers 1, then 1.9
    assert layer.weight.item() == pytest.approx(2 - 0.5 * 1.2 - 0.5 * 2.22, rel=1e-6)
    assert layer.bias.item() == pytest.approx(3 - 1.0 * 1 - 1.0 * 1.9, rel=1e-6)


def test_adamw_step_by_hand() -> None:
    layer = nn.Linear(1, 1)
    schedule = ScheduleConfig(iterations=9, images_per_step=1, optimizer="adamw", lr=0.5, weight_decay=0.1, warmup=4)
    optimizer = build_optimizer(layer, schedule)
    with torch.no_grad():
        layer.weight.fill_(2.0)
        layer.bias.fill_(3.0)
    assert set_lr(optimizer, 0, schedule) == pytest.approx(0.05)
    layer.weight.grad, layer.bias.grad = torch.full((1, 1), 7.0), torch.full((1,), -7.0)
    optimizer.step()
    # the first step of Adam has the size of the learning rate, whatever the gradient's size
    assert layer.weight.item() == pytest.approx(2 - 0.05 * 0.1 * 2 - 0.05, rel=1e-6)
    assert layer.bias.item() == pytest.approx(3 + 0.05, rel=1e-6)
