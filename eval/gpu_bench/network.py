"""The networks with random weights that find something, and photos of noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from eval.gpu_bench.cases import NETWORKS, TINY
from export.precision import prepare
from training import gpu_step_check
from training.config import load_config
from training.model.upsnet import UPSNet
from training.predictor import make_manifest
from upsnet.categories import Categories
from upsnet.geometry import NetworkBatch
from upsnet.manifest import Manifest, Precision

CONFIGS = Path(__file__).resolve().parents[2] / "training" / "configs"
COCO = (53, 80)  # stuff and things
# The box head's first weights are small, and sure of nothing. With these, detections of several classes pass the
# threshold, and where the features of an untrained backbone say nothing, those of the first class do.
WEIGHT, BIAS = 60.0, 9.0


def make_network(name: str, precision: Precision) -> tuple[UPSNet, Manifest]:
    """As it is exported, on the CPU; the same weights whenever it is made."""
    stuff, things = COCO
    if name in TINY:
        stuff, things = gpu_step_check.STUFF, gpu_step_check.THINGS
        config = gpu_step_check.configuration("fp32")
    else:
        config = load_config(CONFIGS / f"{name}.yaml", ())
    torch.manual_seed(0)
    model = UPSNet(config.model, stuff, things)
    with torch.no_grad():
        model.box_head.logits.weight.mul_(WEIGHT)
        model.box_head.logits.bias[1] = BIAS
    classes = [{"id": i + 1, "name": f"class {i}", "isthing": int(i >= stuff)} for i in range(stuff + things)]
    manifest = make_manifest(config, Categories.from_coco(classes)).model_copy(update={"precision": precision})
    return prepare(model, precision), manifest


def make_batch(name: str, batch: int) -> NetworkBatch:
    """Of the network's size, a few pixels of padding."""
    height, width = {**NETWORKS, **TINY}[name]
    images = np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), np.uint8)
    return NetworkBatch(images, np.array([[height, width - 6]] * batch, np.int32), np.ones(batch, np.float32))
