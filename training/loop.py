"""The training loop: plain PyTorch, one process or several under torchrun, fp32.

A step is a function of (configuration, step, weights) alone: its images come from a sampler over (seed, step) and its
random draws from a generator seeded with (seed, step, rank). So a run that was killed and is started again goes on from
its last checkpoint with the losses of a run that was not (bit for bit on the CPU with the same number of threads).
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from eval.evaluate import score
from eval.pq import PQStat
from panoptic.categories import Categories
from panoptic.dataset import PanopticFolder, check_categories, groups
from panoptic.errors import InputError
from panoptic.manifest import Manifest
from panoptic.predictor import Predictor, predict_photos
from training.checkpoint import Checkpoint, load, load_weights, save, versions
from training.config import Config, DataConfig, SplitConfig, differing_keys
from training.data.batch import Batch, StepSampler, make_loader
from training.data.coco_panoptic import PanopticDataset
from training.data.transforms import Augment
from training.log import Log, Report
from training.losses import TrainingLosses
from training.model.upsnet import UPSNet
from training.predictor import ModelPredictor, make_manifest, open_device
from training.schedule import build_optimizer, set_lr

Builder = Callable[[Config, Categories], tuple[nn.Module, nn.Module]]

EXTENSIBLE = ("schedule.iterations",)  # what a run may be continued with a new value of
LONGEST_WAIT = timedelta(hours=2)  # of the other processes, while the first one evaluates


class TrainingError(InputError):
    """Training cannot go on: a loss, a gradient or a weight is not finite."""


class Process(NamedTuple):
    """This process among `world`; each has its own device on GPUs."""

    rank: int
    world: int
    device: torch.device


def build_network(config: Config, categories: Categories) -> tuple[nn.Module, nn.Module]:
    """The network, and the module around it that turns a Batch into weighted losses by name."""
    model = UPSNet(config.model, categories.num_stuff, categories.num_things)
    return model, TrainingLosses(model, config.loss)


def train(config: Config, out: Path, device: str = "auto", build: Builder = build_network) -> int:
    """Train until `schedule.iterations`, going on from out/last.pt where there is one.

    Writes config.yaml, versions.json, metrics.jsonl, tb/, last.pt and, at evaluations, best.pt (best PQ; no optimizer
    state). Returns 0 at the end of the schedule, else the number of the signal (SIGTERM, SIGINT) that stopped it.
    InputError for bad configurations, data and checkpoints; TrainingError when a loss is not finite.
    """
    with processes(device) as process:
        checkpoint = find_checkpoint(out, config)
        if checkpoint and checkpoint.step >= config.schedule.iterations:
            if process.rank == 0:
                print(f"{out}: finished already at step {checkpoint.step}; raise schedule.iterations to go on")
            return 0
        return Run(config, out, process, checkpoint, build).loop()


@contextmanager
def processes(device: str) -> Iterator[Process]:
    """This process's place; under torchrun it joins the others (NCCL on GPUs, else gloo)."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    target = open_device(device)
    if world == 1:
        yield Process(0, 1, target)
        return
    if target.type == "cuda":
        target = open_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(target)
    dist.init_process_group("nccl" if target.type == "cuda" else "gloo", timeout=LONGEST_WAIT)
    yield Process(dist.get_rank(), world, target)
    dist.destroy_process_group()  # not after an error: the others may be waiting inside a collective


def find_checkpoint(out: Path, config: Config) -> Checkpoint | None:
    """out/last.pt, which must come from the same configuration; only schedule.iterations may differ."""
    path = out / "last.pt"
    if not path.exists():
        return None
    checkpoint = load(path)
    differing = differing_keys(checkpoint.config, config)
    described = [f"{key} ({values})" for key, values in differing.items() if key not in EXTENSIBLE]
    if described:
        raise InputError(
            f"{path}: this run was started with another configuration (it against yours): {'; '.join(described)}; "
            "go on with its config.yaml, or give another folder with --out"
        )
    if not checkpoint.optimizer:
        raise InputError(f"{path}: holds no optimizer state, so training cannot go on from it; give another --out")
    return checkpoint


class Run:
    """The state of one training run and what a step does to it."""

    def __init__(
        self, config: Config, out: Path, process: Process, checkpoint: Checkpoint | None, build: Builder
    ) -> None:
        self.config, self.schedule, self.out, self.process = config, config.schedule, out, process
        if self.schedule.images_per_step % process.world:
            raise InputError(
                f"schedule.images_per_step {self.schedule.images_per_step} cannot be shared equally by "
                f"{process.world} processes; make it a multiple, or change the number of GPUs"
            )
        self.dataset = open_training(config.data, config.seed)
        self.categories = self.dataset.categories
        manifest = make_manifest(config, self.categories)
        self.validation = None
        if self.schedule.evaluate_every and process.rank == 0:
            self.validation = open_validation(config.data.val, manifest)
        torch.manual_seed(config.seed)
        self.model, losses = build(config, self.categories)
        losses.to(process.device)
        if process.world > 1 and process.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(losses)  # statistics of the global batch, whatever the GPUs' number
        self.optimizer = build_optimizer(self.model, self.schedule)
        self.step = 0
        self.best_pq: float | None = None
        if checkpoint:
            self._restore(checkpoint)
        self.losses = DistributedDataParallel(losses) if process.world > 1 else losses
        self.predictor = ModelPredictor(self.model, manifest, process.device)

    def _restore(self, checkpoint: Checkpoint) -> None:
        if checkpoint.categories != self.categories:
            raise InputError(
                f"{self.out / 'last.pt'}: its categories are not those of {self.config.data.train.json_file}; "
                "give another folder with --out"
            )
        load_weights(self.model, checkpoint.model, self.out / "last.pt")
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self.step, self.best_pq = checkpoint.step, checkpoint.best_pq

    def loop(self) -> int:
        """Step until the schedule ends or a signal comes; returns 0 or the signal's number."""
        if self.process.rank == 0:
            remove_leftovers(self.out)
        with stop_signals() as received, Log(self.out, self.config, self.step, self.process.rank == 0) as log:
            for batch in self.batches():
                report = self.update(batch, received)
                last = self.step == self.schedule.iterations or report.signal > 0
                evaluating = self._evaluation_due()
                log.progress(self.step, report)
                if evaluating:
                    log.quality(self.step, self.evaluate())
                if last or evaluating or self.step % self.schedule.checkpoint_every == 0:
                    self.save("last.pt")
                if report.signal:
                    return report.signal
        return 0

    def batches(self) -> DataLoader:
        """This process's share of every global batch from the next step on."""
        sampler = StepSampler(
            len(self.dataset),
            self.schedule.images_per_step,
            self.schedule.iterations,
            self.config.seed,
            first_step=self.step,
            rank=self.process.rank,
            world=self.process.world,
        )
        return make_loader(self.dataset, sampler, self.config.data.workers)

    def update(self, batch: Batch, received: list[int]) -> Report:
        """One step of the optimizer. Where a number is not finite: TrainingError, and the weights stay as they were."""
        torch.manual_seed(step_seed(self.config.seed, self.step, self.process.rank))
        lr = set_lr(self.optimizer, self.step, self.schedule)
        self.optimizer.zero_grad()
        losses = self.losses(batch.to(self.process.device))
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        values = torch.stack([total.new_tensor(float(bool(received))), norm, total, *losses.values()]).detach()
        if self.process.world > 1:  # one small exchange a step: all processes see the same numbers and decide alike
            dist.all_reduce(values)
            values /= self.process.world
        stop, norm_value, loss, *terms = values.tolist()
        number = (received or [signal.SIGTERM])[0] if stop else 0
        report = Report(loss, dict(zip(losses, terms, strict=True)), lr, number)
        if not (math.isfinite(loss) and math.isfinite(norm_value)):
            self._refuse(report, norm_value, batch.image_ids)
        if self.schedule.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), self.schedule.clip_norm, norm)
        self.optimizer.step()
        self.step += 1
        return report

    def _refuse(self, report: Report, norm: float, image_ids: list[int]) -> NoReturn:
        everyones = [image_ids]
        if self.process.world > 1:
            everyones = [[] for _ in range(self.process.world)]
            dist.all_gather_object(everyones, image_ids)
        terms = ", ".join(f"{name} {value:.4g}" for name, value in report.losses.items())
        raise TrainingError(
            f"step {self.step + 1}: not finite: loss {report.loss:.4g} ({terms}), gradient norm {norm:.4g}; images "
            f"{', '.join(map(str, chain.from_iterable(everyones)))}; the checkpoints are from before; "
            "lower schedule.lr or set schedule.clip_norm"
        )

    def _evaluation_due(self) -> bool:
        every = self.schedule.evaluate_every
        return bool(every) and (self.step % every == 0 or self.step == self.schedule.iterations)

    def evaluate(self) -> dict[str, float | None]:
        """PQ in [0, 1] on the first `evaluate_images` of the validation set; the best weights so far go to best.pt.

        The first process does it; the others wait. Empty on the others.
        """
        quality: dict[str, float | None] = {}
        if self.validation is not None:
            quality = panoptic_quality(self.predictor, self.validation, self.schedule.evaluate_images)
            pq = quality["pq"] or 0.0
            if self.best_pq is None or pq > self.best_pq:
                self.best_pq = pq
                self.save("best.pt", optimizer=False)
        if self.process.world > 1:
            dist.barrier()
        return quality

    def save(self, name: str, optimizer: bool = True) -> None:
        """Write the checkpoint (the first process). TrainingError, and no file, when a weight is not finite."""
        if self.process.rank:
            return
        weights = self.model.state_dict()
        bad = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
        if bad:
            raise TrainingError(
                f"step {self.step}: weights not finite: {', '.join(bad)}; {name} is from before; lower schedule.lr"
            )
        state = self.optimizer.state_dict() if optimizer else {}
        checkpoint = Checkpoint(self.config, self.categories, self.step, self.best_pq, weights, state, versions())
        save(self.out / name, checkpoint)


def remove_leftovers(out: Path) -> None:
    """Delete the half-written temporary checkpoints of a process that was killed while it wrote them."""
    for name in ("last", "best"):
        for leftover in out.glob(f".{name}.*.pt"):
            leftover.unlink()


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Gathers SIGTERM and SIGINT instead of dying of them; a second one acts as it did before."""
    received: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, previous[number])

    previous: dict[int, Any] = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of a step's random draws, different for each step and process."""
    return ((seed << 40) + (step << 10) + rank) % (1 << 63)


def check_data(split: SplitConfig, key: str) -> None:
    """InputError naming the first part of a data set that is not there."""
    for name, path in (("json_file", split.json_file), ("segments", split.segments), ("images", split.images)):
        if not path.exists():
            raise InputError(
                f"{path}: no such {'file' if name == 'json_file' else 'folder'} ({key}.{name}); `upsnet shapes --out "
                f"data/shapes` makes the demo's data set; for another, set {key}.* to its place"
            )


def open_training(data: DataConfig, seed: int) -> PanopticDataset:
    """The training set with its augmentation; InputError where it is missing or faulty."""
    check_data(data.train, "data.train")
    augment = Augment(**data.augment.model_dump(), short_sides=data.short_sides)
    return PanopticDataset(data.train.json_file, data.train.segments, data.train.images, data.resize, augment, seed)


def open_validation(split: SplitConfig, manifest: Manifest) -> PanopticFolder:
    """The validation set; InputError where it is missing or its categories are not the training set's."""
    check_data(split, "data.val")
    folder = PanopticFolder(split.json_file, split.segments, split.images)
    check_categories(folder, manifest)
    return folder


def panoptic_quality(predictor: Predictor, folder: PanopticFolder, images: int) -> dict[str, float | None]:
    """PQ, PQ of things and of stuff (in [0, 1]; None without such segments) on the first `images` images."""
    stat = PQStat()
    for group in groups(folder.records[:images], predictor.manifest.max_batch):
        pairs = [folder.read(record) for record in group]
        results = predict_photos(predictor, [photo for photo, _ in pairs])
        for record, (_, truth), result in zip(group, pairs, results, strict=True):
            score(stat, record, truth, result, folder.categories)
    results = stat.results(folder.categories)["results"]
    return {"pq": results["All"]["pq"], "pq_things": results["Things"]["pq"], "pq_stuff": results["Stuff"]["pq"]}
