"""One step of training: forward and backward passes, the update, and its numbers, without waiting for the device.

A step's numbers are copied to the host while the next step is computed and read when that one has been queued. A step
whose numbers are not finite does not touch the weights: the optimizer's kernels themselves read that flag.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from training.batch_norm import synchronise
from training.config import Config
from training.data.batch import Batch
from training.distributed import Process, gather
from training.model.recompute import recompute_blocks
from training.schedule import Plan, build_optimizer, set_lr
from upsnet.errors import first_line

LOWER = {"bf16": torch.bfloat16, "fp16": torch.float16}  # of the forward pass; fp32 and tf32 have one type alone


class TrainingError(Exception):
    """Training cannot go on: a loss, a gradient or a weight is not finite, or memory ran out. One line."""


class Report(NamedTuple):
    """The numbers of one step: means over the processes. stop: a process was asked to stop."""

    step: int  # from 1 up: the number of updates after it
    losses: dict[str, float]
    norm: float  # of the gradient, before it is clipped; not finite in the steps that fp16 leaves out
    lr: float
    stop: bool

    @property
    def loss(self) -> float:
        return sum(self.losses.values())


class Pending(NamedTuple):
    """A step's numbers on their way to the host: [stop, gradient norm, loss scale before, and after, losses ...]."""

    step: int
    names: list[str]
    lr: float
    image_ids: list[int]
    values: Tensor
    arrived: torch.cuda.Event | None


class Stepper:
    """A network with its losses, its optimizer and, where the schedule asks for it, its averaged copy `ema`."""

    def __init__(self, model: nn.Module, losses: nn.Module, config: Config, plan: Plan, process: Process) -> None:
        self.model, self.config, self.plan, self.process = model, config, plan, process
        compute = config.compute
        set_tf32(compute.precision)
        losses.to(process.device).train()
        if compute.channels_last:
            losses.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        synchronise(losses, process)
        self.optimizer = build_optimizer(model, config.schedule)
        self.ema = average_of(model, config.schedule.ema) if config.schedule.ema else None
        self.scaler = torch.amp.GradScaler(process.device.type, enabled=compute.precision == "fp16")
        if compute.recompute_backbone:
            recompute_blocks(model.get_submodule("backbone"))
        if compute.compile:
            for part in model.children():
                compile_part(part)
        self.losses = losses
        if process.world > 1:
            # Gradients that are there from the start are added to. A new one of a 1x1 convolution may come with other
            # strides than its weight's, which DDP warns of.
            for parameter in losses.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
            self.losses = DistributedDataParallel(losses, gradient_as_bucket_view=True)
            if compute.exchange == "bf16":
                self.losses.register_comm_hook(None, bf16_compress_hook)
        self._pending: deque[Pending] = deque()

    def step(self, passes: Sequence[Batch], step: int, signals: Sequence[int]) -> None:
        """Step number `step` (0-based) on this process's batches; the gradient is the mean over all their images.

        signals: the stop signals that this process has received; the list may grow during the step. Every process
        learns with the step's numbers whether any has received one.
        """
        torch.manual_seed(step_seed(self.config.seed, step, self.process.rank))
        lr = set_lr(self.optimizer, step, self.plan)
        self.optimizer.zero_grad(set_to_none=self.process.world == 1)
        losses = [self._backward(batch, last=batch is passes[-1]) for batch in passes]
        scale = self._scale()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        terms = torch.stack([torch.stack(list(some.values())) for some in losses]).mean(0)
        terms = torch.cat([terms, terms.new_full((1,), float(bool(signals)))])
        if self.process.world > 1:  # one small exchange a step: all processes see the same numbers and decide alike
            dist.all_reduce(terms)
            terms = terms / self.process.world
        self._update(norm, ~torch.isfinite(torch.cat([norm[None], terms])).all(), step)
        values = torch.cat([torch.stack([terms[-1], norm, scale, self._scale()]), terms[:-1]])
        image_ids = list(chain.from_iterable(batch.image_ids for batch in passes))
        self._pending.append(Pending(step + 1, list(losses[0]), lr, image_ids, *to_host(values)))

    def reports(self, drain: bool) -> list[Report]:
        """Those of the steps that are over by `late` steps, of all steps with `drain`; TrainingError where a number is
        not finite. Every process gets the same number of reports, so that all act on the same step."""
        reports = []
        while len(self._pending) > (0 if drain else self.process.late):
            reports.append(self._report(self._pending.popleft()))
        return reports

    def _backward(self, batch: Batch, last: bool) -> dict[str, Tensor]:
        """Forward and backward pass of one batch -> its losses; gradients are exchanged in the last one."""
        device, precision = self.process.device, self.config.compute.precision
        with (
            in_memory(batch),
            self.losses.no_sync() if isinstance(self.losses, DistributedDataParallel) and not last else nullcontext(),
        ):
            with autocast(device, precision):
                losses = self.losses(batch.to(device))
            total = torch.stack([loss.float() for loss in losses.values()]).sum() / self.plan.passes
            self.scaler.scale(total).backward()
        return {name: loss.detach().float() for name, loss in losses.items()}

    def _update(self, norm: Tensor, refused: Tensor, step: int) -> None:
        """Clip the gradient and apply it, unless `refused`, which the fused kernels read on the device."""
        if self.config.schedule.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), self.config.schedule.clip_norm, norm)
        self.optimizer.found_inf = refused.float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.scaler.update()
        if self.ema:
            self.ema.update(self.model, step + 1)

    def _scale(self) -> Tensor:
        """What losses are multiplied by for the backward pass, on the device; 1 unless the precision is fp16."""
        return self.scaler.scale(torch.ones((), device=self.process.device))

    def _report(self, pending: Pending) -> Report:
        if pending.arrived:
            pending.arrived.synchronize()
        stop, norm, before, after, *terms = pending.values.tolist()
        report = Report(pending.step, dict(zip(pending.names, terms, strict=True)), norm, pending.lr, stop > 0)
        left_out = 1.0 <= after < before  # an overflow of fp16: the step was left out, and the scale lowered
        if not all(map(math.isfinite, terms)) or not (math.isfinite(norm) or left_out):
            everyones = gather(pending.image_ids, self.process)
            cure = "lower schedule.lr or set schedule.clip_norm"
            if after < 1.0:
                cure = f"fp16 overflows at a loss scale of {before:g} too: compute.precision=bf16, or {cure}"
            raise TrainingError(
                f"step {report.step}: not finite: loss {report.loss:.4g} "
                f"({', '.join(f'{name} {value:.4g}' for name, value in report.losses.items())}), gradient norm "
                f"{norm:.4g}; images {', '.join(map(str, chain.from_iterable(everyones)))}; the checkpoints are from "
                f"before; {cure}"
            )
        return report


def compile_part(part: nn.Module, backend: Any = "inductor") -> None:
    """In place, as one graph for images of all sizes: one for each would take minutes, and end at a limit of 8.

    PyTorch takes sizes that are equal in the first batch for one and the same, as the height of a level and the number
    of channels, and compiles again where they are not. Not here, in the whole process.
    """
    torch.fx.experimental._config.use_duck_shape = False
    part.compile(backend=backend, dynamic=True, fullgraph=True)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The types of the forward pass."""
    return torch.autocast(device.type, LOWER.get(precision), enabled=precision in LOWER)


def set_tf32(precision: str) -> None:
    """Whether a GPU rounds what float32 convolutions and matrix products read to TF32, whose mantissa has 10 bits: in
    PyTorch by default those of convolutions alone. A setting of the whole process."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"


def average_of(model: nn.Module, decay: float) -> ModelEmaV3:
    """The exponential moving average of the parameters, beginning with a short memory; buffers are copied.

    After t updates the decay is min(decay, 1 - t^-.75): the first update copies, the rate .999 comes after 10,000.
    """
    return ModelEmaV3(model, decay, use_warmup=True, warmup_power=0.75, exclude_buffers=True)


@contextmanager
def in_memory(batch: Batch) -> Iterator[None]:
    """TrainingError where the GPU's memory does not suffice for the batch."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        shape = " x ".join(map(str, batch.images.shape[:3]))
        raise TrainingError(
            f"images {', '.join(map(str, batch.image_ids))} ({shape}): {first_line(error)}; lower "
            "schedule.images_per_gpu, which keeps the global batch, or data.resize"
        ) from None


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of a step's random draws, different for each step and process."""
    return ((seed << 40) + (step << 10) + rank) % (1 << 63)


def to_host(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """A copy on the host, which on a GPU is complete once the event is: nobody waits for it here."""
    if values.device.type != "cuda":
        return values, None
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(values.device))  # the copy's; another device may be the current one
    return host, event
