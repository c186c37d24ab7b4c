"""The losses that are options: the boxes' generalised IoU and its weight, and the masks' dice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torchvision.ops import generalized_box_iou_loss

from tests.training.losses.conftest import STUFF, THINGS
from tests.training.losses.test_total import NAMES, ReadsNothing, gradients, values_of
from tests.training.tiny_network import PANOPTIC_FPN
from training.config import LossConfig
from training.data.batch import Batch
from training.losses import TrainingLosses
from training.losses.total import is_thing
from training.model.boxes import BOX_WEIGHTS
from training.model.heads import BOX_POOL
from training.model.upsnet import UPSNet
from training.model_config import ModelConfig

MakeBatch = Callable[..., Batch]
GIOU = {"regression": "giou"}
WITH_DICE = [*NAMES[:6], "dice", *NAMES[6:]]


def wrapped(model: ModelConfig, kinds: tuple[int, int] = (STUFF, THINGS), **weights: float) -> TrainingLosses:
    torch.manual_seed(0)
    config = model.model_copy(update={"box_head": model.box_head.model_copy(update=GIOU)})
    return TrainingLosses(UPSNet(config, *kinds), LossConfig(**weights))


@pytest.mark.parametrize("instances", [[3, 2], [0, 2], [0, 0]])
@pytest.mark.parametrize("conventions", ["ours", "upsnet"])
def test_every_parameter_takes_part(
    small: ModelConfig, make_batch: MakeBatch, instances: list[int], conventions: str
) -> None:
    losses = wrapped(small.model_copy(update={"conventions": conventions}), dice=2.0, boxes=10.0)
    with ReadsNothing():
        values = losses(make_batch(instances))
        sum(values.values()).backward()
    assert list(values) == WITH_DICE
    assert all(torch.isfinite(value) and value >= 0 and value.dtype == torch.float32 for value in values.values())
    assert all(torch.isfinite(gradient).all() for gradient in gradients(losses))
    assert bool(sum(instances)) == bool(values["dice"] > 0) == bool(values["rcnn_box"] > 0)


def test_no_gradient_reads_values_unseen(small: ModelConfig, make_batch: MakeBatch) -> None:
    """That of Tensor.prod counts zeros on the host, but not while a TorchDispatchMode, as ReadsNothing, looks on."""
    total = sum(wrapped(small, dice=1.0)(make_batch([3, 2])).values())
    assert isinstance(total, torch.Tensor)
    seen, left = set[Any](), [total.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [each for each, _ in node.next_functions]
    names = {node.name() for node in seen}
    assert "MulBackward0" in names and not {name for name in names if name.startswith("Prod")}


def test_stuff_alone(small: ModelConfig, make_batch: MakeBatch) -> None:
    assert list(wrapped(small, (STUFF, 0), dice=2.0)(make_batch([0]))) == ["semantic"]


@pytest.mark.parametrize("instances", [[3, 2], [0, 0]])
def test_panoptic_fpn(make_batch: MakeBatch, instances: list[int]) -> None:
    losses = wrapped(ModelConfig.model_validate(PANOPTIC_FPN), semantic=0.5, semantic_roi=0, panoptic=0, dice=1.0)
    values = losses(make_batch(instances))
    assert list(values) == WITH_DICE[:7] and all(torch.isfinite(value) for value in values.values())
    sum(values.values()).backward()
    assert all(torch.isfinite(gradient).all() for gradient in gradients(losses))


@pytest.mark.parametrize(("weight", "name"), [("boxes", "rcnn_box"), ("dice", "dice")])
def test_a_weight_is_of_its_term_alone(small: ModelConfig, make_batch: MakeBatch, weight: str, name: str) -> None:
    batch = make_batch([3, 2])
    losses = wrapped(small, dice=1.0).eval()
    once = values_of(losses(batch))
    losses.weights = losses.weights.model_copy(update={weight: 3.0})
    found = values_of(losses(batch))
    assert found == pytest.approx(once | {name: 3 * once[name]}, rel=1e-5)
    losses.weights = losses.weights.model_copy(update={weight: 0.0})
    without = losses(batch)
    assert name not in without or without[name] == 0
    assert (name in without) == (name == "rcnn_box")
    sum(without.values()).backward()
    gradients(losses)  # of zeros, but there


def test_generalised_iou_by_hand(small: ModelConfig, make_batch: MakeBatch) -> None:
    """Of the foreground's decoded boxes with their ground truth, by torchvision, over all sampled RoIs."""
    losses, batch = wrapped(small).eval(), make_batch([4])
    model = losses.model
    with torch.no_grad():
        torch.nn.init.normal_(model.box_head.deltas.weight, std=0.05)
        pyramid = model.pyramid(batch.images, batch.sizes)
        rois = losses.targets(batch, model.rpn(pyramid)).rois
        _, deltas = model.box_head(model.roi_features(pyramid, rois.rois, BOX_POOL))
        rows = is_thing(rois.labels[0]).nonzero()[:, 0]
        own = deltas[rows, rois.labels[0, rows]]
        found = model.conventions.decode(own, rois.rois[0, rows], BOX_WEIGHTS)
        expected = generalized_box_iou_loss(found, batch.boxes[0][rois.owners[0, rows]], reduction="sum")
        count = int((rois.labels >= 0).sum() - (rois.labels == 255).sum())
        assert losses(batch)["rcnn_box"].item() == pytest.approx(expected.item() / count, rel=1e-3)


def test_they_are_learned(small: ModelConfig, make_batch: MakeBatch) -> None:
    losses, batch = wrapped(small, boxes=5.0, dice=1.0), make_batch([3, 2])
    optimizer = torch.optim.AdamW(losses.parameters(), lr=3e-3)
    seen: list[dict[str, Any]] = []
    for _ in range(10):
        values = losses(batch)
        optimizer.zero_grad()
        sum(values.values()).backward()
        optimizer.step()
        seen.append(values_of(values))
    assert min(values["dice"] for values in seen[-3:]) < 0.9 * seen[0]["dice"]
