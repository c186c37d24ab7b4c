"""The network under torch.compile: one graph, without a break, in both memory formats and as a GPU has it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from training import gpu_step_check
from training.config import ModelConfig
from training.model.upsnet import UPSNet


def network(backbone: dict[str, Any] | None = None) -> UPSNet:
    torch.manual_seed(0)
    own = {"backbone": backbone} if backbone else {}
    return UPSNet(
        ModelConfig.model_validate(gpu_step_check.SMALL | own), gpu_step_check.STUFF, gpu_step_check.THINGS
    ).eval()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels last"])
def test_it_is_one_graph_and_computes_the_same(layout: torch.memory_format) -> None:
    model = network().to(memory_format=layout)  # type: ignore[call-overload]
    batch = gpu_step_check.made_up_batch(lambda tensor: tensor)
    inputs = (batch.images, batch.sizes, batch.scales)
    with torch.no_grad():
        expected = model(*inputs)
        found = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")(*inputs)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours == theirs).float().mean() > 0.99


def test_what_a_gpu_alone_does_breaks_no_graph() -> None:
    """Without values, on no CPU: as `normalize` goes where the device is a GPU, in a ResNet with deformable stages."""
    model = network(gpu_step_check.RESNET).to("meta").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batch = gpu_step_check.made_up_batch(lambda tensor: tensor.to("meta"))
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, dynamic=False, backend="eager")
    with torch.no_grad():
        found = compiled(batch.images, batch.sizes, batch.scales)
    assert [tuple(each.shape) for each in found] == [(2, 64, 96), (2, 11, 7), (2,)]
