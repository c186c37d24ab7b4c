"""The losses of a Panoptic FPN: those of UPSNet that need no panoptic logits, with all things as one semantic class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.training.losses.conftest import STUFF, THINGS
from tests.training.tiny_network import PANOPTIC_FPN, settings
from training.config import Config, LossConfig
from training.data.batch import Batch
from training.data.sample import IGNORE
from training.losses import TrainingLosses
from training.losses.targets import things_as_one
from training.model.upsnet import UPSNet
from training.model_config import ModelConfig
from upsnet.errors import InputError

MakeBatch = Callable[..., Batch]
NAMES = ["rpn_cls", "rpn_box", "rcnn_cls", "rcnn_box", "mask", "semantic"]
FROZEN = {"kind": "timm", "name": "test_resnet", "freeze": 2, "frozen_norm": True}


def wrapped(stuff: int = STUFF, things: int = THINGS, **model: Any) -> TrainingLosses:
    torch.manual_seed(0)
    config = ModelConfig.model_validate(PANOPTIC_FPN | model)
    return TrainingLosses(UPSNet(config, stuff, things), LossConfig(semantic=0.5, semantic_roi=0, panoptic=0))


@pytest.mark.parametrize("instances", [[3, 2], [0, 2], [0, 0]])
@pytest.mark.parametrize("kinds", [(STUFF, THINGS), (0, THINGS), (0, 1)])
def test_what_is_trained(make_batch: MakeBatch, instances: Sequence[int], kinds: tuple[int, int]) -> None:
    """Every parameter but those of stem, res2 and the backbone's normalisations, with and without stuff."""
    losses, batch = wrapped(*kinds, backbone=FROZEN).train(), make_batch(instances)
    if not kinds[0]:  # the background is channel 0
        things = (batch.semantic - STUFF) % kinds[1]
        semantic = torch.where(batch.instances > 0, 1 + things, 0).byte()
        batch = batch._replace(semantic=semantic, labels=[own % kinds[1] for own in batch.labels])
    before = {name: buffer.clone() for name, buffer in losses.named_buffers()}
    values = losses(batch)
    assert list(values) == NAMES and all(torch.isfinite(value) and value >= 0 for value in values.values())
    sum(values.values()).backward()
    without = {name for name, p in losses.named_parameters() if p.grad is None}
    trunk = "model.backbone.network."
    fixed = {name for name, _ in losses.named_parameters() if name.startswith((f"{trunk}conv1.", f"{trunk}layer1."))}
    for name, module in losses.model.backbone.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            fixed |= {f"model.backbone.{name}.{part}" for part in ("weight", "bias")}
    assert without == fixed
    assert all(torch.equal(buffer, before[name]) for name, buffer in losses.named_buffers())


def test_stuff_alone(make_batch: MakeBatch) -> None:
    losses, batch = wrapped(things=0), make_batch([0, 0])
    assert losses.model.semantic_channels == STUFF
    values = losses(batch)
    assert list(values) == ["semantic"] and values["semantic"] > 0


def test_things_as_one() -> None:
    labels = torch.tensor([0, 3, 4, 5, 132, IGNORE], dtype=torch.uint8)
    found = things_as_one(labels, 4)
    assert found.tolist() == [0, 3, 4, 4, 4, IGNORE] and found.dtype == torch.uint8


def test_semantic_loss(make_batch: MakeBatch) -> None:
    """Cross-entropy of stuff and one channel of things at full resolution, as PyTorch has it, times .5."""
    losses, batch = wrapped().eval(), make_batch([3])
    batch.semantic[:, :9] = IGNORE
    with torch.no_grad():
        logits = losses.model.semantic_head(losses.model.pyramid(batch.images, batch.sizes)[:4], batch.sizes)
        assert logits.shape[1] == STUFF + 1
        wanted = batch.semantic.long()
        wanted[(wanted >= STUFF) & (wanted != IGNORE)] = STUFF
        full = F.interpolate(logits, scale_factor=4.0, mode="bilinear")
        expected = 0.5 * F.cross_entropy(full, wanted, ignore_index=IGNORE)
        assert losses(batch)["semantic"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_padding_of_a_batch_is_of_no_matter(make_batch: MakeBatch) -> None:
    """Normalisations of the semantic head see an image and its own padding: with a larger one the loss is the same."""
    losses, small = wrapped().eval(), make_batch([3], height=48, width=64)

    def enlarged(maps: Tensor, value: int) -> Tensor:
        return torch.cat([F.pad(maps, (0, 32, 0, 48), value=value), torch.full((1, 96, 96), value, dtype=maps.dtype)])

    blank = {"boxes": [*small.boxes, torch.zeros(0, 4)], "labels": [*small.labels, torch.zeros(0, dtype=torch.int64)]}
    large = small._replace(
        images=torch.cat([F.pad(small.images, (0, 0, 0, 32, 0, 48)), torch.zeros(1, 96, 96, 3, dtype=torch.uint8)]),
        sizes=torch.tensor([[48, 64], [96, 96]], dtype=torch.int32),
        scales=torch.ones(2),
        semantic=enlarged(small.semantic, IGNORE),
        instances=enlarged(small.instances, 0),
        seeds=torch.arange(2),
        image_ids=[0, 1],
        **blank,
    )
    small = small._replace(
        images=F.pad(small.images, (0, 0, 0, 0, 0, 16)),
        semantic=F.pad(small.semantic, (0, 0, 0, 16), value=IGNORE),
        instances=F.pad(small.instances, (0, 0, 0, 16)),
    )
    with torch.no_grad():
        alone, together = losses(small)["semantic"].item(), losses(large)["semantic"].item()
    assert together == pytest.approx(alone / 2, rel=2e-2), "the second image has no labelled pixel"


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_in_half_precision(make_batch: MakeBatch, precision: torch.dtype) -> None:
    losses, batch = wrapped().train(), make_batch([3, 0])
    with torch.no_grad():
        exact = {name: value.item() for name, value in losses(batch).items()}
    with torch.autocast("cpu", precision):
        values = losses(batch)
    for name in ("semantic", "mask", "rcnn_cls"):
        assert values[name].dtype == torch.float32 and values[name].item() == pytest.approx(exact[name], rel=0.1)
    sum(values.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in losses.parameters())


# The configuration


def configured(**loss: float) -> Config:
    return settings(Path("x"), model=PANOPTIC_FPN, loss=loss)


def test_its_losses_by_default() -> None:
    assert configured().loss == LossConfig(semantic=0.5, semantic_roi=0, panoptic=0)
    assert configured(semantic=1.0).loss == LossConfig(semantic=1.0, semantic_roi=0, panoptic=0)
    assert settings(Path("x")).loss == LossConfig(semantic=0.2, semantic_roi=0.04, panoptic=0.1)


@pytest.mark.parametrize("keys", [["panoptic"], ["semantic_roi"], ["semantic_roi", "panoptic"]])
def test_losses_that_it_has_not(keys: list[str]) -> None:
    named = " and ".join(f"loss.{key}" for key in keys)
    with pytest.raises(InputError, match=rf"^test: {named}: only model\.panoptic\.merge: logits has such a loss.*out$"):
        configured(**dict.fromkeys(keys, 0.1))
