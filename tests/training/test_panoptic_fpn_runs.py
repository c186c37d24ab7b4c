"""Runs of a Panoptic FPN: it learns a photo by heart, goes on after a stop, starts from a network of other classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import upsnet
from export.onnx_export import export_onnx
from tests.one_kind import Kind, keep_kind
from tests.training.tiny_network import PANOPTIC_FPN, metrics, settings, shapes_split
from training.checkpoint import Checkpoint, load, save, versions
from training.loop import train
from training.model.upsnet import UPSNet
from upsnet.categories import Categories
from upsnet.datasets.shapes import write_shapes
from upsnet.errors import InputError

FROZEN = PANOPTIC_FPN | {"backbone": PANOPTIC_FPN["backbone"] | {"freeze": 2, "frozen_norm": True}}
LEARNING = PANOPTIC_FPN | {
    "backbone": {"stem": [8, 16], "widths": [16, 24, 32, 48], "depths": [1, 1, 1, 1], "expansion": 2},
    "box_head": {"hidden": 64, "samples": 32},
}
PHOTOGRAPHED = [  # categories of somebody's network
    {"id": 3, "name": "checks", "isthing": 0},
    {"id": 4, "name": "sky", "isthing": 0},
    {"id": 7, "name": "disk", "isthing": 1},
    {"id": 9, "name": "cat", "isthing": 1},
]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of one photo."""
    return write_shapes(
        tmp_path_factory.mktemp("one") / "shapes", {"train": 1, "val": 1}, sizes=[(64, 96)], progress=False
    )


def test_it_learns_a_photo_by_heart(one: Path, tmp_path: Path) -> None:
    schedule: dict[str, Any] = {"optimizer": "adamw", "lr": 0.01, "policy": "cosine", "clip_norm": 10.0}
    data = {"augment": {"flip": 0.0}, "val": shapes_split(one)}
    config = settings(one, model=LEARNING, data=data, iterations=36, images_per_step=1, evaluate_every=12, **schedule)
    assert train(config, tmp_path, "cpu") == 0
    pq = [line["pq"] for line in metrics(tmp_path) if "pq" in line]
    assert len(pq) == 3 and pq[-1] > pq[0] + 0.1 and pq[-1] > 0.3


def test_a_run_that_goes_on_is_the_one_that_was_not_stopped(one: Path, tmp_path: Path) -> None:
    schedule: dict[str, Any] = {"images_per_step": 1, "evaluate_every": 0, "ema": 0.9, "lr": 0.001, "warmup": 0}
    compute = {"precision": "bf16"}
    for name, lengths in (("whole", [2]), ("parts", [1, 2])):
        for length in lengths:
            config = settings(one, model=PANOPTIC_FPN, compute=compute, iterations=length, **schedule)
            assert train(config, tmp_path / name, "cpu") == 0
    whole, parts = (load(tmp_path / name / "last.safetensors") for name in ("whole", "parts"))
    assert whole.ema and all(torch.equal(tensor, parts.ema[name]) for name, tensor in whole.ema.items())
    assert all(torch.equal(tensor, parts.model[name]) for name, tensor in whole.model.items())


@pytest.mark.parametrize("kind", ["things", "stuff"])
def test_one_kind_of_categories(one: Path, tmp_path: Path, kind: Kind) -> None:
    (tmp_path / "data").mkdir()
    data = keep_kind(one, tmp_path / "data", kind)
    config = settings(data, model=PANOPTIC_FPN, iterations=1, images_per_step=1, evaluate_every=1, lr=0.001)
    assert train(config, tmp_path / "run", "cpu") == 0
    (figures,) = (line for line in metrics(tmp_path / "run") if "pq" in line)
    assert (figures["pq_things"] is None) == (kind == "stuff") and (figures["pq_stuff"] is None) == (kind == "things")
    score = load(tmp_path / "run/last.safetensors").model["semantic_head.score.bias"]
    assert len(score) == {"things": 2, "stuff": 4}[kind], "the background and the things, or the stuff"


def test_from_somebodys_network_to_a_prediction(one: Path, tmp_path: Path) -> None:
    """Checkpoint of other classes -> fine-tuned on one's own, what is frozen as it was -> ONNX -> engine -> a photo."""
    theirs = Categories.from_coco(PHOTOGRAPHED)
    config = settings(one, model=FROZEN, iterations=2, images_per_step=1, evaluate_every=0, lr=0.001)
    torch.manual_seed(1)
    source = UPSNet(config.model, theirs.num_stuff, theirs.num_things)
    save(tmp_path / "x.safetensors", Checkpoint(config, theirs, 5, None, source.state_dict(), {}, versions()))
    with pytest.raises(
        InputError, match=r"freeze and frozen_norm .* these are random; start from a network with --init"
    ):
        train(config, tmp_path / "run", "cpu")
    assert train(config, tmp_path / "run", "cpu", init=tmp_path / "x.safetensors") == 0
    record = json.loads((tmp_path / "run/init.json").read_text())
    assert record["kept"] == ["checks", "disk"] and record["dropped"] == ["sky", "cat"]
    before, after = source.state_dict(), load(tmp_path / "run/last.safetensors").model
    frozen = [name for name, parameter in source.named_parameters() if not parameter.requires_grad]
    frozen += [name for name in before if ".running_" in name]
    assert len(frozen) > 20 and all(torch.equal(after[name], before[name]) for name in frozen)
    trained = ("layer4.0.conv1.weight", "layer2.0.conv1.weight")
    for name in [f"backbone.network.{name}" for name in trained] + ["semantic_head.chains.0.0.norm.weight"]:
        assert not torch.equal(after[name], before[name]), name
    export_onnx(tmp_path / "run/last.safetensors", tmp_path / "run/model.onnx")
    (photo,) = (one / "val").iterdir()
    found = [upsnet.load(tmp_path / "run" / name).predict(photo).ids for name in ("model.onnx", "last.safetensors")]
    assert found[0].shape == (64, 96) and (found[0] == found[1]).mean() > 0.99
