"""Where the time of a step goes: the seconds of each named method, without those of named methods that it calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from training.benchmark.steps import UpsnetStep
from training.data.batch import Batch

REST = "rest"  # copies to the device, clipping, the exchange of numbers


class Stopwatch:
    """On a GPU by its own clock: an interval that the GPU spends waiting for the host counts to the part at hand.
    clock: of a CPU (default: the wall's)."""

    def __init__(self, device: torch.device, clock: Callable[[], float] | None = None) -> None:
        self.device, self.clock = device, clock or time.perf_counter
        self._running = [REST]
        # The part that ends there, and the moment: a CUDA event, or seconds.
        self._marks: list[tuple[str, Any]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What is done inside counts to `name`, but for the parts within it."""
        self._mark()
        self._running.append(name)
        try:
            yield
        finally:
            self._mark()
            self._running.pop()

    @contextmanager
    def watch(self, owner: Any, method: str, name: str) -> Iterator[None]:
        """Calls of owner.method (of any object) count to `name` for as long as the context lasts."""
        original, own = getattr(owner, method), method in vars(owner)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return original(*args, **kwargs)

        setattr(owner, method, timed)
        try:
            yield
        finally:
            if own:
                setattr(owner, method, original)
            else:
                delattr(owner, method)

    def _mark(self) -> None:
        moment: Any = self.clock()
        if self.device.type == "cuda":
            moment = torch.cuda.Event(enable_timing=True)
            moment.record()
        self._marks.append((self._running[-1], moment))

    def seconds(self) -> dict[str, float]:
        """By part, since the first one began; waits for the device."""
        self._mark()
        sums: dict[str, float] = {}
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        for (_, start), (name, end) in zip(self._marks, self._marks[1:], strict=False):
            span = start.elapsed_time(end) / 1e3 if self.device.type == "cuda" else end - start
            sums[name] = sums.get(name, 0.0) + span
        return sums


def breakdown(ours: UpsnetStep, batches: Sequence[Batch], steps: int, device: torch.device) -> dict[str, float]:
    """Seconds a step by part, most first: the forward pass by its parts, the backward pass, the optimizer."""
    model, losses = ours.model, ours.losses
    watch = Stopwatch(device)
    watched: list[tuple[Any, str, str]] = [
        (losses, "forward", "loss terms"),
        (model, "pyramid", "FPN"),
        (model.backbone, "forward", "backbone"),
        (model.rpn, "forward", "RPN"),
        (losses, "targets", "assignment"),
        (model.rpn, "propose", "proposals"),
        (model, "roi_features", "RoIAlign"),
        (model.box_head, "forward", "box head"),
        (model.mask_head, "forward", "mask head"),
        (model.semantic_head, "forward", "semantic head"),
        (losses, "semantic_roi_loss", "semantic RoI loss"),
        (losses, "panoptic_loss", "panoptic loss"),
        (torch.autograd, "backward", "backward"),
        (ours.stepper.optimizer, "step", "optimizer"),
    ]
    with ExitStack() as stack:
        for owner, method, name in watched:
            stack.enter_context(watch.watch(owner, method, name))
        for i in range(steps):
            with watch.part(REST):
                ours.step(batches[i % len(batches)])
        ours.finish()
    seconds = {name: total / steps for name, total in watch.seconds().items()}
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))
