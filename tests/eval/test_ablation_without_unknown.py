"""The panoptic head without its unknown class: by hand, and in a network's predictor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eval.ablation.without_unknown import predictor_without_unknown
from plugins_cuda.panoptic_fusion import reference
from tests.training.tiny_network import SMALL, panoptic_fpn
from training.model.upsnet import UPSNet
from training.model_config import ModelConfig
from training.predictor import UPSNetPredictor
from upsnet.categories import Categories
from upsnet.errors import InputError
from upsnet.geometry import NetworkBatch, ResizeRule
from upsnet.manifest import Manifest


def fused(instances: int, unknown: bool) -> tuple[list[list[int]], list[list[float]]]:
    """Map and table of 4 x 4 pixels, with stuff logits 1 and 0 and a thing's 3, and an instance on the left half whose
    mask logits are .5."""
    panoptic, segments, count = reference.fuse(
        torch.tensor([1.0, 0.0, 3.0]).reshape(1, 3, 1, 1),
        torch.tensor([[[0.0, 0.0, 1.0, 3.0]]]),
        torch.zeros(1, 1, dtype=torch.int64),
        torch.tensor([[0.9]]),
        torch.full((1, 1, 2, 2), 0.5),
        torch.tensor([instances], dtype=torch.int32),
        torch.tensor([[4, 4]], dtype=torch.int32),
        torch.ones(1),
        num_stuff=2,
        stuff_area_limit=0.0,
        unknown=unknown,
    )
    return panoptic[0].tolist(), segments[0, : int(count), [0, 2]].tolist()


def test_by_hand() -> None:
    """The instance has 3 + .5 on its half, and 0 on the other; there unknown has 3 - 0, the first stuff 1."""
    assert fused(1, unknown=True) == ([[1, 1, 0, 0]] * 4, [[2, 8]])
    assert fused(1, unknown=False) == ([[2, 2, 1, 1]] * 4, [[0, 8], [2, 8]])


def test_by_hand_without_instances() -> None:
    assert fused(0, unknown=True) == ([[0] * 4] * 4, [])
    assert fused(0, unknown=False) == ([[1] * 4] * 4, [[0, 16]])


def manifest(stuff: int, things: int) -> Manifest:
    table = [{"id": i + 1, "name": f"class {i}", "isthing": int(i >= stuff)} for i in range(stuff + things)]
    categories = list(Categories.from_coco(table))
    return Manifest(name="x", categories=categories, resize=ResizeRule(short_side=64, max_side=96), max_detections=8)


def network() -> UPSNet:
    """Sees things everywhere, of which no detection is one; no area of stuff is too small for it."""
    torch.manual_seed(0)
    panoptic = {"panoptic": {"max_detections": 8, "stuff_area_limit": 0}}
    model = UPSNet(ModelConfig.model_validate(SMALL | panoptic), 3, 4).eval()
    nn.init.normal_(model.semantic_head.score.weight, std=1.0)
    assert isinstance(model.box_head.logits.bias, Tensor)
    nn.init.constant_(model.box_head.logits.bias[0], 1e4)
    return model


def test_a_predictor() -> None:
    model, cpu = network(), torch.device("cpu")
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)
    batch = NetworkBatch(images, np.array([[64, 96], [60, 90]], np.int32), np.ones(2, np.float32))
    known = UPSNetPredictor(model, manifest(3, 4), cpu)
    before, found = known.predict(batch), predictor_without_unknown(model, manifest(3, 4), cpu).predict(batch)
    assert 0 < (before.panoptic[0] == 0).mean() < 1
    assert (found.panoptic[0] > 0).all() and (found.panoptic[1, :60, :90] > 0).all()
    decided = before.panoptic[0] > 0
    for of in (before, found):
        assert set(of.segments[0, : of.segment_count[0], 0]) <= {0, 1, 2}
    classes = [of.segments[0, of.panoptic[0].astype(int) - 1, 0] for of in (before, found)]
    assert (classes[0] == classes[1])[decided].all()
    assert np.array_equal(known.predict(batch).panoptic, before.panoptic), "the network itself still knows it"


def test_details_are_without_it_too() -> None:
    predictor = predictor_without_unknown(network(), manifest(3, 4), torch.device("cpu"))
    photo = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    assert (predictor.predict_detailed([photo]).raw.panoptic > 0).all()


def test_the_heuristic_merge_is_refused() -> None:
    with pytest.raises(InputError, match=r"^model\.panoptic\.merge: heuristic knows no unknown class"):
        predictor_without_unknown(panoptic_fpn(), manifest(3, 4), torch.device("cpu"))
