"""Learning rates worked out by hand, and which parameter follows which rule."""

from __future__ import annotations

import io
import json
import math
from fractions import Fraction

import pytest
import torch
from rich.console import Console
from torch import nn

from tests.training.tiny_network import SMALL
from training.config import ScheduleConfig
from training.model.deform import DeformConv
from training.model.upsnet import UPSNet
from training.model_config import ModelConfig
from training.schedule import build_optimizer, lr_factor, make_plan, optimizer_tensors, parameter_groups, set_lr
from upsnet.errors import InputError

DECAY = (Fraction(2, 3), Fraction(8, 9))
SCHEDULE = ScheduleConfig(images=1_440_000, images_per_gpu=1, decay=DECAY)
PUBLISHED = make_plan(SCHEDULE, 16)
COSINE = make_plan(
    ScheduleConfig(iterations=2100, images_per_step=8, optimizer="adamw", lr=0.002, warmup=100, policy="cosine"), 1
)


def test_sixteen_images_a_step_on_fewer_gpus_take_more_passes() -> None:
    schedule = SCHEDULE.model_copy(update={"images_per_step": 16, "images_per_gpu": 2})
    plans = [make_plan(schedule, processes) for processes in (1, 2, 4, 8)]
    assert [plan.passes for plan in plans] == [8, 4, 2, 1]
    assert {(plan.lr, plan.iterations, plan.images_per_gpu) for plan in plans} == {(0.02, 90_000, 2)}
    assert make_plan(schedule.model_copy(update={"images_per_gpu": None}), 4).images_per_gpu == 4


def test_a_resumed_run_keeps_its_global_batch() -> None:
    plan = make_plan(SCHEDULE, 4, images_per_step=16)
    assert (plan.images_per_step, plan.passes, plan.iterations) == (16, 4, 90_000) and plan.lr == pytest.approx(0.02)


def test_the_last_step_may_go_beyond_the_images() -> None:
    plan = make_plan(ScheduleConfig(images=10, images_per_step=4), 1)
    assert plan.iterations == 3


@pytest.mark.parametrize(
    ("schedule", "processes", "resumed", "message"),
    [
        ({"images_per_step": 6}, 4, None, r"schedule.images_per_step 6 cannot be shared .* 4 processes; .*multiple"),
        ({"images_per_gpu": 1}, 3, 16, r"the resumed run's global batch 16 cannot be shared equally by 3 processes"),
        ({"images_per_step": 8, "images_per_gpu": 3}, 1, None, r"images_per_gpu 3 does not divide the 8 images of one"),
        ({"images_per_gpu": 2}, 4, 4, r"images_per_gpu 2 does not divide the 1 images .* a divisor of 1"),
    ],
)
def test_batches_that_cannot_be_shared(schedule: dict, processes: int, resumed: int | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_plan(ScheduleConfig(iterations=1, **schedule), processes, resumed)


def test_the_table_tells_every_number() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(PUBLISHED.table("coco", 118_287), COSINE.table("demo", 100))
    printed = console.export_text()
    for text in ("16 = 16 processes x 1 images x 1 passes", "90,000", "1,440,000, 12.17 epochs of 118,287", "0.02"):
        assert text in printed
    for text in ("1,500 steps", "a tenth from step 60,000, 80,000", "half a cosine to 0"):
        assert text in printed
    assert json.loads(json.dumps(PUBLISHED.model_dump(mode="json")))["decay_steps"] == [60_000, 80_000]


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
    assert PUBLISHED.lr * lr_factor(step, PUBLISHED) == pytest.approx(lr, rel=1e-9)


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 0.1), (50, 0.55), (100, 1.0), (600, (1 + math.sqrt(0.5)) / 2), (1100, 0.5), (2100, 0.0)]
)
def test_cosine(step: int, factor: float) -> None:
    assert lr_factor(step, COSINE) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize("policy", ["step", "cosine"])
def test_no_warmup_starts_at_the_full_rate_and_a_warmup_longer_than_the_run_never_reaches_it(policy: str) -> None:
    short = {"iterations": 10, "images_per_step": 1, "policy": policy}
    assert lr_factor(0, make_plan(ScheduleConfig(**short, warmup=0), 1)) == 1.0
    assert lr_factor(9, make_plan(ScheduleConfig(**short, warmup=20), 1)) == pytest.approx(0.1 + 0.9 * 9 / 20)


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


@pytest.mark.parametrize(("optimizer", "decay", "bias_scale"), [("sgd", 0.1, 2.0), ("adamw", 0.1, 1.0)])
@pytest.mark.parametrize("share", [0.1, 0.0])
def test_the_offsets_have_a_learning_rate_of_their_own(
    optimizer: str, decay: float, bias_scale: float, share: float
) -> None:
    """A tenth of what their weights and biases had; the rest of the deformable convolution learns as before."""
    deform, plain = DeformConv(2, 3), nn.Conv2d(3, 3, 1)
    model = nn.Sequential(deform, plain)
    schedule = ScheduleConfig(iterations=1, images_per_step=1, optimizer=optimizer, weight_decay=0.1, offset_lr=share)
    groups = parameter_groups(model, schedule)
    rules = {p: (g["weight_decay"], g["lr_scale"]) for g in groups for p in g["params"]}
    assert rules == {
        deform.weight: (decay, 1.0),
        deform.bias: (0.0, bias_scale),
        deform.conv_offset.weight: (decay, share),
        deform.conv_offset.bias: (0.0, bias_scale * share),
        plain.weight: (decay, 1.0),
        plain.bias: (0.0, bias_scale),
    }
    built = build_optimizer(model, schedule)
    plan = make_plan(schedule, 1)
    assert set_lr(built, 0, plan) == plan.lr * lr_factor(0, plan)
    assert len(built.param_groups) == len(groups) == 4


def test_offsets_that_do_not_learn_stay_as_they_are() -> None:
    model = DeformConv(2, 3)
    schedule = ScheduleConfig(iterations=9, images_per_step=1, lr=0.5, warmup=0, offset_lr=0.0)
    optimizer = build_optimizer(model, schedule)
    set_lr(optimizer, 0, make_plan(schedule, 1))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(torch.randn(1, 2, 6, 6)).square().sum().backward()
    optimizer.step()
    assert {name for name, p in model.named_parameters() if torch.equal(p, before[name])} == {
        "conv_offset.weight",
        "conv_offset.bias",
    }


def test_every_parameter_of_the_network_is_in_exactly_one_group() -> None:
    model = UPSNet(ModelConfig.model_validate(SMALL), num_stuff=2, num_things=3)
    groups = parameter_groups(model, SCHEDULE)
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
    assert set_lr(optimizer, 0, make_plan(schedule, 1)) == 0.5
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
    assert set_lr(optimizer, 0, make_plan(schedule, 1)) == pytest.approx(0.05)
    layer.weight.grad, layer.bias.grad = torch.full((1, 1), 7.0), torch.full((1,), -7.0)
    optimizer.step()
    # the first step of Adam has the size of the learning rate, whatever the gradient's size
    assert layer.weight.item() == pytest.approx(2 - 0.05 * 0.1 * 2 - 0.05, rel=1e-6)
    assert layer.bias.item() == pytest.approx(3 + 0.05, rel=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_optimizers_leave_out_a_step_that_they_are_told_to(name: str) -> None:
    """The flag is a tensor, so that nobody waits for it; the very first step may be the one."""
    layer = nn.Linear(2, 1)
    schedule = ScheduleConfig(iterations=9, images_per_step=1, optimizer=name, lr=0.5, warmup=0)
    optimizer = build_optimizer(layer, schedule)
    set_lr(optimizer, 0, make_plan(schedule, 1))
    layer.weight.grad, layer.bias.grad = torch.full((1, 2), torch.nan), torch.ones(1)
    before = [tensor.clone() for tensor in (layer.weight, layer.bias, *optimizer_tensors(layer, optimizer).values())]
    optimizer.found_inf = torch.tensor(1.0)  # type: ignore[attr-defined]
    optimizer.step()
    after = [layer.weight, layer.bias, *optimizer_tensors(layer, optimizer).values()]
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))
    optimizer.found_inf = torch.tensor(0.0)  # type: ignore[attr-defined]
    layer.weight.grad = torch.ones(1, 2)
    optimizer.step()
    assert not torch.equal(layer.weight, before[0])


def test_optimizer_state_by_name() -> None:
    layer = nn.Linear(2, 1)
    layer.bias.requires_grad_(False)
    names = {
        "sgd": ["weight.momentum_buffer"],
        "adamw": ["weight.exp_avg", "weight.exp_avg_sq", "weight.step"],
    }
    for optimizer, expected in names.items():
        schedule = ScheduleConfig(iterations=9, images_per_step=1, optimizer=optimizer)
        assert sorted(optimizer_tensors(layer, build_optimizer(layer, schedule))) == expected
