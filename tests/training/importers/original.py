"""A small network of the original's kind, the checkpoint that the original would hold, and the truth of an image."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor
from typer.testing import CliRunner, Result

from training.config import parse_config
from training.data.sample import IGNORE
from training.importers.arrays import Arrays
from training.importers.upsnet.keys import FIRST_CONV, original_names
from training.model.upsnet import UPSNet
from upsnet.command_line.command import make_app

SPLIT = {"json_file": "a.json", "segments": "a", "images": "a"}
CONFIG: dict[str, Any] = {  # as a YAML file holds it
    "name": "small",
    "seed": 5,
    "model": {
        "conventions": "upsnet",
        "backbone": {"stem": [4, 8], "widths": [8, 8, 8, 8], "depths": [1, 2, 1, 1], "expansion": 2},
        "fpn": {"channels": 8},
        "rpn": {"channels": 8, "test_top_n": 30, "train_top_n": 40, "samples": 32},
        "box_head": {"hidden": 16, "samples": 24},
        "mask_head": {"channels": 8, "layers": 2},
        "semantic_head": {"channels": [8, 8]},
    },
    "loss": {"semantic": 0.2, "semantic_roi": 0.04, "panoptic": 0.1},
    "data": {"train": SPLIT, "val": SPLIT, "resize": {"short_side": 64, "max_side": 96}},
    "schedule": {"iterations": 1, "images_per_step": 1},
}
TABLE = [{"id": i + 1, "name": name, "isthing": int(i > 1)} for i, name in enumerate(["sky", "grass", "cat", "dog"])]
HEIGHT, WIDTH = 64, 96  # of the image, with four rows of padding
BOXES = np.array([[8, 4, 39, 35], [44, 20, 91, 51], [20, 30, 43, 55]], np.float32)  # inclusive corners
CLASSES = np.array([2, 1, 1])


def network(num_stuff: int = 2, num_things: int = 2, seed: int = 1, **changes: object) -> UPSNet:
    """`changes`: sections of the model's configuration."""
    torch.manual_seed(seed)
    config = parse_config(CONFIG | {"model": CONFIG["model"] | changes}, "test")
    return UPSNet(config.model, num_stuff, num_things)


def original_of(model: UPSNet) -> dict[str, Tensor]:
    """The checkpoint that the original would hold with the weights of `model`."""
    weights = {name: model.state_dict()[key].clone() for key, name in original_names(model).items()}
    weights[FIRST_CONV] = weights[FIRST_CONV][:, [2, 1, 0]]
    return weights


def write_files(folder: Path) -> Path:
    """config.yaml, categories.json and original.pth of `network()`."""
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "categories.json").write_text(json.dumps(TABLE))
    torch.save(original_of(network()), folder / "original.pth")
    return folder


def truth() -> Arrays:
    """Three rectangles, the last behind the others, on two kinds of stuff."""
    semantic = np.full((HEIGHT, WIDTH), IGNORE, np.uint8)
    semantic[:60] = np.arange(WIDTH) // 24 % 2
    instances = np.zeros((HEIGHT, WIDTH), np.int16)
    for row in (2, 1, 0):
        x1, y1, x2, y2 = BOXES[row].astype(int)
        instances[y1 : y2 + 1, x1 : x2 + 1] = 1 + row
        semantic[y1 : y2 + 1, x1 : x2 + 1] = 1 + CLASSES[row]
    return {"gt_boxes": BOXES, "gt_classes": CLASSES, "semantic": semantic, "instances": instances}


def call(main: Callable[..., None], *arguments: object) -> Result:
    return CliRunner().invoke(make_app(main), [str(argument) for argument in arguments])
