"""The training loop: plain PyTorch, one process or several under torchrun.

A step is a function of (configuration, step, weights) alone: its images come from a sampler over (seed, step), the
draws of their augmentation and losses from (seed, epoch, image), and any others from a generator seeded with (seed,
step, rank). So a run that was killed and is started again goes on from its last checkpoint with the losses of a run
that was not (bit for bit on the CPU with the same number of threads and processes).
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.markup import escape
from torch import nn

from training.checkpoint import Checkpoint, copy_tensors, load, load_weights, not_finite, save, versions
from training.config import Config, differing_keys
from training.data.check import check_images_once
from training.data.loader import fit_workers, make_loader, reading
from training.data.open import image_digest, make_sampler, open_training, open_validation
from training.distributed import Process, gather, processes
from training.evaluation import details, pictures, quality
from training.fine_tuning import RECORD, ClassRule, Start, start_from
from training.lock import only_run
from training.log import Log
from training.losses import TrainingLosses
from training.model.upsnet import UPSNet, load_pretrained_backbone
from training.predictor import make_manifest, predictor_of
from training.schedule import make_plan, optimizer_tensors
from training.signals import stop_signals
from training.step import Stepper, TrainingError
from upsnet.categories import Categories, differences
from upsnet.datasets.folder import PanopticFolder
from upsnet.errors import InputError
from upsnet.files import write_json
from upsnet.history.observed import Observed
from upsnet.metrics.evaluation import Watch
from upsnet.runtimes.predictor import Predictor

LAST, BEST = "last.safetensors", "best.safetensors"
# A run that goes on may have new values of the keys that begin so: its length, how a step is computed, how often the
# run reports, and where its data lies. Every other key must be as it was.
MAY_CHANGE = (
    "schedule.iterations",
    "schedule.images",  # and images_per_gpu; of images_per_step the run keeps its own
    "schedule.checkpoint_every",
    "schedule.evaluate_every",
    "schedule.log_every",
    "compute.",
    "data.check",
    "data.workers",
    "data.train.",
    "data.val.",
)
# What may differ between the machines of a run.
OF_A_MACHINE = ("data.workers", "data.train.", "data.val.")


def build_network(config: Config, categories: Categories) -> tuple[nn.Module, nn.Module]:
    """The network, and the module around it that turns a Batch into weighted losses by name."""
    model = UPSNet(config.model, categories.num_stuff, categories.num_things)
    return model, TrainingLosses(model, config.loss)


class Task(NamedTuple):
    """What is trained, and how it is scored. The tests train a smaller network."""

    build: Callable[[Config, Categories], tuple[nn.Module, nn.Module]] = build_network
    quality: Callable[[Predictor, PanopticFolder, int | None, Process, Watch], dict[str, float | None]] = quality


UPSNET = Task()


def train(
    config: Config,
    out: Path,
    device: str = "auto",
    task: Task = UPSNET,
    init: Path | None = None,
    classes: ClassRule = "by-name",
) -> int:
    """Train to the end of the schedule, going on from out/last.safetensors where there is one.

    init: a checkpoint whose weights a new run starts from; classes: which of its classes are taken. Writes config.yaml,
    plan.json, versions.json, init.json (with `init`), metrics.jsonl, evaluations.jsonl, tb/, last.safetensors and, at
    evaluations, training.html and best.safetensors (best PQ; weights alone); without any, training.html at checkpoints.
    Returns 0 at the end of the schedule, else the number of the signal (SIGTERM, SIGINT) that stopped it. InputError
    for bad configurations, data and checkpoints, and where another process trains in `out`; TrainingError when a loss
    is not finite.
    """
    with processes(device) as process, only_run(out, process):
        agree(config, classes, process)
        return Run(config, out, process, task, init, classes).loop()


def agree(config: Config, classes: ClassRule, process: Process) -> None:
    """InputError, on every process, where one was given another configuration: an old file, another option. Only where
    the data lies may differ between machines, and how it is read."""
    first, *others = gather((config, classes), process)
    for rank, (its, rule) in enumerate(others, 1):
        changes = {"--classes": f"{first[1]} against {rule}"} if rule != first[1] else {}
        changes |= differing_keys(first[0], its)
        if described := [f"{key} ({values})" for key, values in changes.items() if not key.startswith(OF_A_MACHINE)]:
            raise InputError(
                f"the processes were given different configurations (process 0's against process {rank}'s): "
                f"{'; '.join(described)}; give all machines the same command and the same file"
            )


def find_checkpoint(out: Path, config: Config) -> Checkpoint | None:
    """out/last.safetensors, which must come from the same configuration, but for the keys that MAY_CHANGE."""
    path = out / LAST
    if not path.exists():
        if (out / "last.pt").exists():
            raise InputError(f"{out / 'last.pt'}: a run of an older version; give another folder with --out")
        return None
    checkpoint = load(path)
    changes = differing_keys(checkpoint.config, config).items()
    if described := [f"{key} ({values})" for key, values in changes if not key.startswith(MAY_CHANGE)]:
        raise InputError(
            f"{path}: this run was started with another configuration (it against yours): {'; '.join(described)}; "
            "go on with its config.yaml, or give another folder with --out"
        )
    if not checkpoint.optimizer:
        raise InputError(f"{path}: holds no optimizer state, so training cannot go on from it; give another --out")
    return checkpoint


class Run:
    """The state of one training run, and when it reports, evaluates and saves."""

    def __init__(
        self,
        config: Config,
        out: Path,
        process: Process,
        task: Task = UPSNET,
        init: Path | None = None,
        classes: ClassRule = "by-name",
    ) -> None:
        self.config, self.schedule, self.out, self.process, self.task = config, config.schedule, out, process, task
        checkpoint = find_checkpoint(out, config)
        self.plan = make_plan(config.schedule, process.world, checkpoint.images_per_step if checkpoint else None)
        self.dataset = open_training(config.data, config.seed)
        self.categories, self.digest = self.dataset.categories, image_digest(self.dataset)
        manifest = make_manifest(config, self.categories)
        self.validation = open_validation(config.data, self.categories) if self.schedule.evaluate_every else None
        torch.manual_seed(config.seed)
        self.model, losses = task.build(config, self.categories)
        self.start: Start | None = None
        if not checkpoint:
            self._start(init, classes)
        elif init and process.first:
            print(f"{out}: goes on from its own {LAST}; --init {init} is for a new run, and is not read")
        self.stepper = Stepper(self.model, losses, config, self.plan, process)
        self.step, self.evaluated = 0, True
        self.best_pq: float | None = None
        if checkpoint:
            self._restore(checkpoint)
        if len(set(gather(self.step, process))) > 1:
            raise InputError(f"{out}: the processes found different checkpoints; give an --out that all of them share")
        if len(set(gather(self.digest, process))) > 1:
            raise InputError(f"{config.data.train.json_file}: other images on another machine; give all the same data")
        self.workers = fit_workers(config.data.workers)
        self.sampler = make_sampler(self.dataset, config, self.plan, process.rank, self.step)
        evaluated = self.stepper.ema.module if self.stepper.ema else self.model
        self.predictor = predictor_of(evaluated, manifest, process.device)
        folders = [folder for folder in (self.dataset.folder, self.validation) if folder]
        check_images_once(folders, out, process, config.data.check == "full")

    def _start(self, init: Path | None, classes: ClassRule) -> None:
        """A new run's weights: a checkpoint's, or random ones with a pretrained backbone where one is configured."""
        source = ""
        if self.process.first:
            (self.out / RECORD).unlink(missing_ok=True)  # of a run that was killed before its first checkpoint
        if init:
            self.start = start_from(self.model, init, self.config, self.categories, classes)
            source = self.start.source
        elif isinstance(self.model, UPSNet):
            source = load_pretrained_backbone(self.model)
        if self.process.first:
            print(f"{self.config.name} starts from {source or 'random weights'}")
            if self.start:
                self.start.show()

    def _restore(self, checkpoint: Checkpoint) -> None:
        path = self.out / LAST
        data = self.config.data.train.json_file
        if found := differences(self.categories, checkpoint.categories, "the data set", "the run"):
            raise InputError(
                f"{path}: its categories are not those of {data}: {found}; give another folder with --out, and "
                f"--init {path} to start from its weights"
            )
        if checkpoint.image_ids != self.digest:
            raise InputError(
                f"{path}: its categories or images are not those of {data}; give another folder with --out"
            )
        stepper = self.stepper
        load_weights(self.model, checkpoint.model, path)
        if stepper.ema:
            load_weights(stepper.ema.module, checkpoint.ema, path)
        own = optimizer_tensors(self.model, stepper.optimizer)
        copy_tensors(own, checkpoint.optimizer, f"{path}: its optimizer state does not fit the network")
        if checkpoint.scaler:
            stepper.scaler.load_state_dict(dict(checkpoint.scaler))
        self.step, self.best_pq, self.evaluated = checkpoint.step, checkpoint.best_pq, checkpoint.evaluated

    def loop(self) -> int:
        """Step until the schedule ends or a signal comes; returns 0 or the signal's number."""
        if self.step >= self.plan.iterations and self.evaluated:
            if self.process.first:
                done = f"{self.out}: finished already at step {self.step}"
                print(f"{done}; raise the schedule's iterations or images to go on")
            return 0
        if self.process.first:
            remove_leftovers(self.out)
            if self.start:
                write_json(self.out / RECORD, self.start._asdict())
            table = self.plan.table(f"{self.config.name}, from step {self.step}", len(self.dataset))
            table.add_row("device", escape(self.process.described))
            Console().print(table)
            if self.workers < (wanted := self.config.data.workers):
                print(f"data.workers: {wanted}, and {self.workers} a process are started, for want of cores")
        pinned = self.process.device.type == "cuda"
        with (
            stop_signals(patient=self.process.world > 1) as received,
            Log(self.out, self.config, self.plan, self.process, self.step, self.evaluated) as log,
            reading(make_loader(self.dataset, self.sampler, self.workers, pinned)) as batches,
        ):
            if not self.evaluated:
                self.evaluate(log)
            log.restart()
            compiles = self.config.compute.compile
            while self.step < self.plan.iterations:
                with log.waiting():
                    passes = [next(batches) for _ in range(self.plan.passes)]
                with log.compiling() if compiles else nullcontext():
                    self.stepper.step(passes, self.step, received)
                compiles = False
                self.step += 1
                if self._advance(log):
                    return (received or [signal.SIGTERM])[0]
        return 0

    def _advance(self, log: Log) -> bool:
        """What follows a step: progress, checkpoint, evaluation. Returns whether the run has been asked to stop."""
        every, last = self.schedule.evaluate_every, self.step == self.plan.iterations
        evaluating = bool(every) and (last or self.step % every == 0)
        due = evaluating or last or self.step % self.schedule.checkpoint_every == 0
        reports = self.stepper.reports(drain=due)
        stopping = any(report.stop for report in reports)
        if stopping:
            reports += self.stepper.reports(drain=True)
        for report in reports:
            log.progress(report)
        if due or stopping:
            self.evaluated = not evaluating
            self.save(LAST)
            if evaluating and not stopping:
                self.evaluate(log)
            elif not every:
                log.page()
            log.restart()
        return stopping

    def evaluate(self, log: Log) -> None:
        """Score the network on the first `evaluate_images` of the validation set; the best so far goes to BEST."""
        self.evaluated = True
        if self.validation is None:
            return
        images = self.schedule.evaluate_images
        observed = Observed(self.categories)
        figures = self.task.quality(self.predictor, self.validation, images, self.process, observed.add)
        found = details(observed, self.predictor, self.dataset.folder, self.step, self.process)
        if self.process.first:
            log.quality(self.step, figures, pictures(self.predictor, self.validation, images), *found)
            pq = figures["pq"] or 0.0
            if self.best_pq is None or pq > self.best_pq:
                self.best_pq = pq
                self.save(BEST)
        self.save(LAST)

    def save(self, name: str) -> None:
        """Write the checkpoint (the first process). TrainingError, and no file, when a number of it is not finite."""
        if not self.process.first:
            return
        stepper = self.stepper
        checkpoint = Checkpoint(
            self.config,
            self.categories,
            self.step,
            self.best_pq,
            self.model.state_dict(),
            optimizer_tensors(self.model, stepper.optimizer),
            versions(),
            ema=stepper.ema.module.state_dict() if stepper.ema else {},
            images_per_step=self.plan.images_per_step,
            evaluated=self.evaluated,
            scaler=stepper.scaler.state_dict(),
            image_ids=self.digest,
        )
        if name == BEST:  # the weights that were evaluated, alone
            checkpoint = checkpoint._replace(model=checkpoint.weights, optimizer={}, ema={}, scaler={})
        bad = not_finite(checkpoint.model)
        bad += [f"{part}.{key}" for part in ("ema", "optimizer") for key in not_finite(getattr(checkpoint, part))]
        if bad:
            raise TrainingError(
                f"step {self.step}: weights not finite: {', '.join(bad)}; {name} is from before; lower schedule.lr"
            )
        save(self.out / name, checkpoint)


def remove_leftovers(out: Path) -> None:
    """Delete what a process that was killed has half written: our temporary files, and safetensors's own."""
    for pattern in (".last.*.safetensors", ".best.*.safetensors", ".tmp??????", ".training.*.html"):
        for leftover in out.glob(pattern):
            leftover.unlink()
