"""The network under torch.compile: one graph, without a break, in both memory formats and as a GPU has it; and its
parts as a step compiles them, for training: one graph each for images of all sizes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from training import gpu_step_check
from training.batch_norm import synchronise
from training.config import LossConfig
from training.data.batch import Batch
from training.distributed import Process
from training.losses import TrainingLosses
from training.model.upsnet import UPSNet
from training.model_config import ModelConfig
from training.step import autocast, compile_part

CPU = torch.device("cpu")


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


def batch_of(height: int, width: int) -> Batch:
    """The made-up one, padded to that size."""
    batch = gpu_step_check.made_up_batch(lambda tensor: tensor)
    down, across = height - batch.images.shape[1], width - batch.images.shape[2]
    return batch._replace(
        images=F.pad(batch.images, (0, 0, 0, across, 0, down)),
        semantic=F.pad(batch.semantic, (0, across, 0, down)),
        instances=F.pad(batch.instances, (0, across, 0, down)),
        sizes=torch.tensor([[height, width - 6]] * len(batch.images), dtype=torch.int32),
    )


@pytest.mark.parametrize(
    ("backbone", "precision", "layout", "processes"),
    [
        (None, "fp32", torch.contiguous_format, 2),
        (gpu_step_check.BOTTLENECK, "bf16", torch.channels_last, 1),
        (gpu_step_check.RESNET, "bf16", torch.channels_last, 1),
    ],
    ids=["hybrid of two processes", "bottlenecks in bf16, channels last", "deformable in bf16, channels last"],
)
def test_each_part_trains_as_one_graph_for_all_sizes(
    backbone: dict[str, Any] | None,
    precision: str,
    layout: torch.memory_format,
    processes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a break, which compile_part refuses, and without a second graph: portraits, landscapes, squares, some
    with sides of as many cells as there are channels (16) or images (2). Run without the code generator."""
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: None)
    torch._dynamo.reset()
    model = network(backbone).train()
    losses = TrainingLosses(model, LossConfig()).to(memory_format=layout)  # type: ignore[call-overload]
    synchronise(losses, Process(0, processes, CPU))
    plain, counters = copy.deepcopy(losses), {name: CompileCounter() for name, _ in model.named_children()}
    for name, counter in counters.items():
        compile_part(model.get_submodule(name), backend=counter)

    def step(losses: TrainingLosses, batch: Batch) -> dict[str, Tensor]:
        with autocast(CPU, precision):
            found = losses(batch)
        torch.stack([loss.float() for loss in found.values()]).sum().backward()
        return found

    for height, width in ((128, 192), (192, 128), (256, 256), (128, 320)):
        batch = batch_of(height, width)
        found = step(losses, batch)
        for name, loss in step(plain, batch).items():
            assert found[name].item() == pytest.approx(loss.item(), rel=0.05), name
    assert {name: counter.frame_count for name, counter in counters.items()} == dict.fromkeys(counters, 1)
