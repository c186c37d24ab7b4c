"""Whole training steps of our network and of torchvision's Mask R-CNN, taking turns on the same batches."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from tqdm import tqdm

from panoptic.categories import Categories
from panoptic.errors import InputError
from training.config import Config
from training.data.batch import Batch
from training.loop import build_network
from training.schedule import build_optimizer, set_lr

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WARM_UP = 3  # steps of each before the first that counts: allocations, and the choice of kernels
ROUNDS = 5


class Contender(Protocol):
    name: str

    def prepare(self, batch: Batch) -> Any:
        """What its own loader would hand over, on the host; not timed."""

    def step(self, prepared: Any) -> Tensor:
        """One step, from the copy to the device to the new weights; the loss, still on the device."""


class Timed(NamedTuple):
    """One contender's figures."""

    name: str
    seconds: list[float]  # a step, the mean of each turn
    images: int  # of a step
    memory: int | None  # most bytes of GPU memory: weights, gradients, optimizer and one step's activations

    @property
    def rate(self) -> float:
        """Images a second: the median of the turns."""
        return self.images / statistics.median(self.seconds)


class TorchvisionStep:
    """maskrcnn_resnet50_fpn in training, as pretrained weights would make it: stem and first stage frozen, frozen
    normalisation; its own losses, SGD. What its transform would resize has its size already."""

    def __init__(self, num_things: int, config: Config, device: torch.device, channels_last: bool) -> None:
        self.name = "torchvision Mask R-CNN R50" + (", channels last" if channels_last else "")
        backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=3)
        for name, module in backbone.named_modules():
            # Untrained: without this the frozen normalisation lets every block double what it passes on.
            if isinstance(module, FrozenBatchNorm2d) and name.endswith("bn3"):
                module.weight.zero_()
        self.model = MaskRCNN(backbone, 1 + num_things, _skip_resize=True).to(device)
        if channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.device, self.precision = device, config.compute.precision
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        # The first step's lr: nothing is to be learned here, and nothing may diverge.
        lr = 0.1 * 0.00125 * (config.schedule.images_per_gpu or 1)
        self.optimizer = torch.optim.SGD(trained, lr=lr, momentum=0.9, weight_decay=1e-4)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")

    def prepare(self, batch: Batch) -> list[tuple[Tensor, dict[str, Tensor]]]:
        """Unpadded photos uint8 3 x h x w and their targets, masks included."""
        prepared = []
        for i, (height, width) in enumerate(batch.sizes.tolist()):
            numbers = torch.arange(1, 1 + len(batch.boxes[i]))[:, None, None]
            target = {
                "boxes": batch.boxes[i],
                "labels": 1 + batch.labels[i],
                "masks": (batch.instances[i, :height, :width] == numbers).byte(),
            }
            prepared.append((batch.images[i, :height, :width].permute(2, 0, 1).contiguous(), target))
        return [(self._pin(image), {k: self._pin(t) for k, t in target.items()}) for image, target in prepared]

    def step(self, prepared: list[tuple[Tensor, dict[str, Tensor]]]) -> Tensor:
        images = [image.to(self.device, non_blocking=True).float() / 255 for image, _ in prepared]
        targets = [{k: t.to(self.device, non_blocking=True) for k, t in target.items()} for _, target in prepared]
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, PRECISIONS[self.precision], enabled=self.precision != "fp32"):
            losses = self.model(images, targets)
            total = torch.stack(list(losses.values())).sum()
        self.scaler.scale(total).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return total.detach()

    def _pin(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if self.device.type == "cuda" else tensor


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
