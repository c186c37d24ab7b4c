"""A network of one convolution that the loop's tests train in seconds, its configuration, and what a run of it left."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training import gpu_step_check
from training.checkpoint import load
from training.config import Config, parse_config
from training.data.batch import Batch
from training.data.sample import IGNORE
from training.loop import Task
from training.model.upsnet import UPSNet
from training.model_config import ModelConfig
from upsnet.categories import Categories
from upsnet.datasets.split import Split

SPEED = {"images_per_second", "data_share", "gpu_gib"}  # keys of metrics.jsonl that depend on the clock and the device

SMALL = gpu_step_check.SMALL  # UPSNet itself, as small as it can be
PANOPTIC_FPN: dict[str, Any] = SMALL | {  # as training/configs/panoptic_fpn_r50.yaml, as small as it can be
    "conventions": "detectron2",
    "backbone": {"kind": "timm", "name": "test_resnet"},
    "fpn": {"channels": 16, "global_context": False, "upsample": "nearest"},
    "semantic_head": {"kind": "chains", "channels": 16, "groups": 4},
    "panoptic": {
        "merge": "heuristic",
        "by_class": True,
        "score_threshold": 0.5,
        "mask_overlap": 0.5,
        "max_detections": 8,
        "stuff_area_limit": 16,
    },
}


def panoptic_fpn(num_stuff: int = 3, num_things: int = 4) -> UPSNet:
    """PANOPTIC_FPN with random weights, spread so that all branches find something; in eval mode."""
    torch.manual_seed(0)
    return spread(UPSNet(ModelConfig.model_validate(PANOPTIC_FPN), num_stuff, num_things))


def spread(model: UPSNet) -> UPSNet:
    """A network's last layers, so that all branches find something; in eval mode."""
    if model.num_things:
        nn.init.normal_(model.box_head.logits.weight, std=4.0)
        nn.init.normal_(model.box_head.deltas.weight, std=0.05)
        nn.init.constant_(model.get_parameter("mask_head.score.bias"), 3.0)
    nn.init.normal_(model.semantic_head.score.weight, std=0.5)
    nn.init.constant_(model.get_parameter("semantic_head.score.bias")[model.num_stuff :], 5.0)
    return model.eval()


class TinyNetwork(nn.Module):
    """Semantic segmentation by one convolution; every stuff class is one row of the segments."""

    def __init__(self, config: Config, categories: Categories) -> None:
        super().__init__()
        self.num_stuff = categories.num_stuff
        self.rows = categories.num_stuff + config.model.panoptic.max_detections
        self.conv = nn.Conv2d(3, len(categories), 5, padding=2)

    def logits(self, images: Tensor) -> Tensor:
        return self.conv(images.permute(0, 3, 1, 2) / 255)

    def forward(self, images: Tensor, sizes: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        stuff = self.logits(images)[:, : self.num_stuff].argmax(1)
        segments = torch.zeros(len(images), self.rows, 7)
        segments[..., 0] = torch.arange(self.rows).clamp(max=self.num_stuff - 1)
        return (stuff + 1).byte(), segments, torch.full((len(images),), self.num_stuff, dtype=torch.int32)


Losses = dict[str, Tensor]
Accident = Callable[[int, Losses, TinyNetwork], Losses]  # given the number of the forward pass and its losses


def no_accident(call: int, losses: Losses, model: TinyNetwork) -> Losses:
    return losses


class TinyLosses(nn.Module):
    """Cross-entropy, a mean over the images, and optionally a term that depends on the random state.

    `accident` is called in every forward pass and may alter the losses.
    """

    def __init__(self, model: TinyNetwork, noise: bool, accident: Accident) -> None:
        super().__init__()
        self.model, self.noise, self.accident, self.calls = model, noise, accident, 0

    def forward(self, batch: Batch) -> Losses:
        self.calls += 1
        logits = self.model.logits(batch.images).float()
        errors = F.cross_entropy(logits, batch.semantic.long(), ignore_index=IGNORE, reduction="none")
        labelled = (batch.semantic != IGNORE).flatten(1).sum(1).clamp(min=1)
        losses = {"semantic": (errors.flatten(1).sum(1) / labelled).mean()}
        if self.noise:
            losses["noise"] = 0.1 * torch.rand(()) * self.model.conv.weight.square().sum()
        return self.accident(self.calls, losses, self.model)


def tiny(
    noise: bool = True, accident: Accident = no_accident, seen: Callable[[Batch], Any] = lambda batch: None
) -> Task:
    """The tiny network's task. `seen` is called with every batch. It has no instances for AP, nor a map for mIoU."""

    def build(config: Config, categories: Categories) -> tuple[nn.Module, nn.Module]:
        model = TinyNetwork(config, categories)
        losses = TinyLosses(model, noise, accident)
        losses.register_forward_pre_hook(lambda _, given: seen(given[0]))
        return model, losses

    return Task(build)


def sends_signal(number: int, at: int) -> Accident:
    """To this process, in the forward pass `at`."""

    def accident(call: int, losses: Losses, model: TinyNetwork) -> Losses:
        if call == at:
            os.kill(os.getpid(), number)
        return losses

    return accident


def shapes_split(folder: Path, name: str = "train") -> Split:
    return Split(json_file=folder / f"{name}.json", segments=folder / f"panoptic_{name}", images=folder / name)


def settings(
    shapes: Path,
    *,
    model: dict[str, Any] | None = None,
    compute: dict[str, Any] | None = None,
    loss: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    zoom: tuple[float, float] = (0.8, 1.2),
    **schedule: Any,
) -> Config:
    defaults = {"iterations": 12, "images_per_step": 2, "lr": 0.1, "warmup": 4, "log_every": 1, "checkpoint_every": 4}
    return parse_config(
        {
            "name": "tiny",
            "seed": 3,
            "model": model or {},
            "compute": compute or {},
            "loss": loss or {},
            "data": {
                "train": shapes_split(shapes),
                "val": shapes_split(shapes, "val"),
                "resize": {"short_side": 64, "max_side": 96},
                "augment": {"flip": 0.5, "color": 0.3, "scale": zoom},
                **(data or {}),
            },
            "schedule": defaults | {"evaluate_every": 6} | schedule,
        },
        "test",
    )


def metrics(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in SPEED} for line in lines]


def assert_same_run(out: Path, reference: Path) -> None:
    """The same metrics and the same weights, bit for bit."""
    assert metrics(out) == metrics(reference)
    assert (out / "evaluations.jsonl").read_text() == (reference / "evaluations.jsonl").read_text()
    for name in ("last.safetensors", "best.safetensors"):
        ours, theirs = load(out / name), load(reference / name)
        assert (ours.step, ours.best_pq, ours.scaler) == (theirs.step, theirs.best_pq, theirs.scaler)
        for part in ("model", "ema", "optimizer"):
            mine, others = getattr(ours, part), getattr(theirs, part)
            assert mine.keys() == others.keys()
            assert all(torch.equal(mine[key], value) for key, value in others.items())
