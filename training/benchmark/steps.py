"""Whole training steps of our network and of torchvision's Mask R-CNN, taking turns on the same batches."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from pydantic import BaseModel
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from tqdm import tqdm

from training.config import Config
from training.data.batch import Batch
from training.distributed import Process
from training.losses import TrainingLosses
from training.model.upsnet import UPSNet
from training.schedule import make_plan
from training.step import Stepper, TrainingError, autocast
from upsnet.categories import Categories
from upsnet.errors import InputError

WARM_UP = {"cuda": 3, "cpu": 1}  # steps of each before the first that counts: allocations, the choice of kernels
ROUNDS = 5


class Contender(Protocol):  # Any: a batch as the contender itself wants it
    name: str
    images: int  # of a step

    def prepare(self, batch: Batch) -> Any:
        """What its own loader would hand over, on the host; not timed."""

    def step(self, prepared: Any) -> None:
        """One step, from the copy to the device to the new weights."""

    def finish(self) -> None:
        """Wait for the last step. InputError when a loss was not finite."""


C = TypeVar("C", bound=Contender, covariant=True)


class Timed(BaseModel):
    """One contender's figures."""

    name: str
    images_per_s: float
    median_s: float  # of the turns
    seconds: list[float]  # a step, the mean of each turn
    first_s: float  # the first step, which chooses kernels, and compiles where `compute.compile` says so
    # Most of the GPU's: weights, gradients, optimizer and one step's activations. On a CPU what one step adds to
    # weights and optimizer; None where it is compiled, since nobody sees what is inside.
    memory_bytes: int | None


class UpsnetStep:
    """Ours, by the loop's own Stepper. Layers that the configuration wants pretrained hold random weights here, and are
    frozen all the same."""

    def __init__(self, config: Config, categories: Categories, device: torch.device) -> None:
        self.name = "upsnet-trt, compiled" if config.compute.compile else "upsnet-trt"
        self.images = config.schedule.images_per_gpu or 1
        torch.manual_seed(config.seed)
        self.model = UPSNet(config.model, categories.num_stuff, categories.num_things)
        self.losses = TrainingLosses(self.model, config.loss)
        plan = make_plan(config.schedule, 1)
        self.stepper = Stepper(self.model, self.losses, config, plan, Process(0, 1, device))

    def prepare(self, batch: Batch) -> Batch:
        return batch

    def step(self, prepared: Batch) -> None:
        self.stepper.step([prepared], 0, ())  # always the first step's lr: nothing is to be learned here
        self._read(drain=False)

    def finish(self) -> None:
        self._read(drain=True)

    def _read(self, drain: bool) -> None:
        try:
            self.stepper.reports(drain)
        except TrainingError as error:  # of what the caller chose: a precision, say
            raise InputError(str(error)) from None


class TorchvisionStep:
    """maskrcnn_resnet50_fpn in training, as pretrained weights would make it: stem and first stage frozen, frozen
    normalisation; its own losses, SGD. It proposes and samples as many boxes as ours (by default both do what they
    published). Its transform resizes nothing."""

    def __init__(self, num_things: int, config: Config, device: torch.device, channels_last: bool) -> None:
        self.images = config.schedule.images_per_gpu or 1
        self.name = "torchvision Mask R-CNN R50" + (", channels last" if channels_last else "")
        backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=3)
        for name, module in backbone.named_modules():
            # Untrained: without this the frozen normalisation lets every block double what it passes on.
            if isinstance(module, FrozenBatchNorm2d) and name.endswith("bn3"):
                module.weight.zero_()
        rpn, samples = config.model.rpn, config.model.box_head.samples
        self.model = MaskRCNN(
            backbone,
            1 + num_things,
            rpn_pre_nms_top_n_train=rpn.train_top_n,
            rpn_post_nms_top_n_train=rpn.train_top_n,
            rpn_batch_size_per_image=rpn.samples,
            box_batch_size_per_image=samples,
            _skip_resize=True,
        ).to(device)
        if channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.device, self.precision = device, config.compute.precision
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=1e-4, momentum=0.9, weight_decay=1e-4)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        self._loss = torch.zeros(())

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

    def step(self, prepared: list[tuple[Tensor, dict[str, Tensor]]]) -> None:
        images = [image.to(self.device, non_blocking=True).float() / 255 for image, _ in prepared]
        targets = [{k: t.to(self.device, non_blocking=True) for k, t in target.items()} for _, target in prepared]
        self.optimizer.zero_grad()
        with autocast(self.device, self.precision):
            losses = self.model(images, targets)
            total = torch.stack(list(losses.values())).sum()
        self.scaler.scale(total).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._loss = total.detach()

    def finish(self) -> None:
        if not math.isfinite(self._loss.item()):
            raise InputError(f"{self.name}: the loss is {self._loss.item()}, so its time says nothing; see --precision")

    def _pin(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if self.device.type == "cuda" else tensor


class Warm(NamedTuple, Generic[C]):
    """A contender after its first steps, and the batches as it wants them."""

    contender: C
    inputs: list[Any]
    held: int  # bytes of GPU memory between steps: weights, gradients, optimizer
    first_s: float


def warm_up(make: Callable[[], C], batches: Sequence[Batch], device: torch.device) -> Warm[C]:
    """Make a contender and let it do its first steps; on a GPU one with every batch, since their sizes differ."""
    before = allocated(device)
    contender = make()
    inputs = [contender.prepare(batch) for batch in batches]
    start, first_s = time.perf_counter(), 0.0
    for i in range(max(WARM_UP[device.type], len(batches) if device.type == "cuda" else 0)):
        contender.step(inputs[i % len(inputs)])
        contender.finish()
        synchronize(device)
        first_s = first_s or time.perf_counter() - start
    return Warm(contender, inputs, allocated(device) - before, first_s)


def take_turns(contenders: Sequence[Warm[Contender]], steps: int, device: torch.device) -> list[Timed]:
    """`steps` steps of each over its batches again and again, in turns (A B A B ...): what else the machine does falls
    on all of them alike."""
    rounds = min(ROUNDS, steps)
    turns = [range(steps * i // rounds, steps * (i + 1) // rounds) for i in range(rounds)]
    seconds: list[list[float]] = [[] for _ in contenders]
    peaks = [0] * len(contenders)
    for turn in tqdm(turns, desc="training steps", unit="turn", disable=None):
        for i, (contender, inputs, *_) in enumerate(contenders):
            before = allocated(device)
            reset_peak(device)
            start = time.perf_counter()
            for step in turn:
                contender.step(inputs[step % len(inputs)])
            contender.finish()
            synchronize(device)
            seconds[i].append((time.perf_counter() - start) / len(turn))
            peaks[i] = max(peaks[i], peak(device) - before)
    timed = []
    for warm, own, most in zip(contenders, seconds, peaks, strict=True):
        median, memory = statistics.median(own), warm.held + most if device.type == "cuda" else None
        rate = warm.contender.images / median
        name, first = warm.contender.name, warm.first_s
        timed.append(
            Timed(name=name, images_per_s=rate, median_s=median, seconds=own, first_s=first, memory_bytes=memory)
        )
    return timed


def feed(contender: Contender, batches: Iterable[Batch], device: torch.device) -> tuple[float, float]:
    """Steps on batches as a loader brings them -> images a second, and the share of the time spent waiting for data.

    Each step is waited for, so that nothing hides in the next one; the first one does not count.
    """
    images, waited, begin = 0, 0.0, 0.0
    asked = time.perf_counter()
    for number, batch in enumerate(batches):
        if number:
            waited += time.perf_counter() - asked
            images += len(batch.images)
        contender.step(contender.prepare(batch))
        contender.finish()
        synchronize(device)
        asked = time.perf_counter()
        begin = begin or asked
    return images / (asked - begin), waited / (asked - begin)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
