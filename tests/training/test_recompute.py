"""A backbone that computes twice instead of keeping: the same step to the last bit, in less memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from training import gpu_step_check
from training.batch_norm import synchronise
from training.benchmark.memory import most_alive
from training.config import ComputeConfig
from training.distributed import Process
from training.model.recompute import recompute_blocks
from training.model.upsnet import UPSNet
from training.model_config import ModelConfig
from upsnet.errors import InputError

PLAIN = {"backbone": gpu_step_check.BOTTLENECK}
DEEP = {"backbone": gpu_step_check.SMALL["backbone"] | {"depths": [2, 2, 2, 2]}}
FROZEN = {"backbone": {"kind": "timm", "name": "resnet10t", "freeze": 2, "deformable_stages": [5]}}
EFFICIENT = {"backbone": {"kind": "timm", "name": "test_efficientnet"}}


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    "backbone", [DEEP, PLAIN, FROZEN, EFFICIENT], ids=["hybrid", "bottlenecks", "frozen", "EfficientNet"]
)
def test_the_same_step_in_less_memory(
    backbone: dict[str, Any], processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features, gradients and running statistics, which count once; two steps, so that these would show."""
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: None)
    torch.manual_seed(0)
    plain = UPSNet(ModelConfig.model_validate(gpu_step_check.SMALL | backbone), 3, 4).train().backbone
    synchronise(plain, Process(0, processes, torch.device("cpu")))
    again = copy.deepcopy(plain)
    names = list(again.state_dict())
    recompute_blocks(again)
    assert list(again.state_dict()) == names
    images, results, most = torch.randn(2, 3, 64, 96), [], []

    def step(network: nn.Module) -> None:
        features = network(images)
        torch.stack([feature.square().mean() for feature in features]).sum().backward()
        results.append(features)

    for network in (plain, again):
        most.append(most_alive(lambda network=network: step(network)))  # type: ignore[misc]
        step(network)
    # Of resnet10t two blocks are left to train, one of which is the last and computed again when all else is there.
    assert most[1] < most[0] * (1.01 if backbone is FROZEN else 1)
    torch.testing.assert_close(results[2:], results[:2], rtol=0, atol=0)
    for ours, theirs in ((again.parameters(), plain.parameters()), (again.buffers(), plain.buffers())):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close([one, one.grad], [other, other.grad], rtol=0, atol=0)


def test_refused() -> None:
    with pytest.raises(InputError, match=r"^compute\.recompute_backbone: this backbone has no rows of blocks"):
        recompute_blocks(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()))
    with pytest.raises(ValueError, match=r"recompute_backbone and compile: .* choose one"):
        ComputeConfig(compile=True, recompute_backbone=True)
