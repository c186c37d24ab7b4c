"""What a run reports: the progress bar, metrics.jsonl, evaluations.jsonl, training.html, TensorBoard's tb/, and what it
was made with."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from training.checkpoint import versions
from training.config import Config, dump_config
from training.device import describe_device
from training.distributed import Process
from training.schedule import Plan
from training.step import Report
from upsnet.files import check_utf8, write_json, write_text, writing
from upsnet.history.evaluation import NAME as EVALUATIONS
from upsnet.history.evaluation import Evaluation, read_evaluations
from upsnet.history.observed import Picture
from upsnet.history.page import write_page
from upsnet.json_model import read_steps


class Log:
    """Progress bar, metrics.jsonl and TensorBoard's tb/, by the first process only. A context manager."""

    def __init__(self, out: Path, config: Config, plan: Plan, process: Process, step: int, evaluated: bool) -> None:
        """Goes on after `step`. Lines that an interrupted run has written beyond it are removed, and so is its
        evaluation at `step` when that is still to be done (not `evaluated`)."""
        self.writes, self.device, self.images_per_step = process.first, process.device, plan.images_per_step
        self.restart()
        if not self.writes:
            return
        self.every, self.last = config.schedule.log_every, plan.iterations
        self.shown: dict[str, str] = {}
        self.out, self.metrics, self.evaluations = out, out / "metrics.jsonl", out / EVALUATIONS
        check_utf8(out, "TensorBoard")
        write_text(out / "config.yaml", dump_config(config))
        write_json(out / "versions.json", surroundings(process))
        write_json(out / "plan.json", plan.model_dump(mode="json"))
        for lines in (self.metrics, self.evaluations):
            write_text(lines, "".join(lines_until(lines, step, evaluated)))
        read_evaluations(self.evaluations)  # what is wrong there is said now, not at the next evaluation
        self.hook, threading.excepthook = threading.excepthook, _not_of_the_board
        with writing(out / "tb"):
            self.board = SummaryWriter(str(out / "tb"), purge_step=step + 1)
        self.bar = tqdm(
            desc=config.name,
            unit="step",
            initial=step,
            total=plan.iterations,
            mininterval=0.5 if sys.stderr.isatty() else 30,
        )

    def __enter__(self) -> Log:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self.writes:
            self.bar.close()
            with writing(self.board.log_dir) if kind is None else suppress(OSError):
                self.board.close()
            threading.excepthook = self.hook

    def restart(self) -> None:
        """Measure the speed from now on; to be called after a pause as well."""
        self.start, self.waited, self.steps = time.perf_counter(), 0.0, 0

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """Around a first step that compiles, which says nothing for minutes; it does not count for the speed."""
        start = time.perf_counter()
        if self.writes:
            tqdm.write("compute.compile: the first step compiles, which takes minutes on a CPU")
        yield
        if self.writes:
            tqdm.write(f"compiling: the first step took {time.perf_counter() - start:.1f} s")
        self.restart()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for one step's data."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start
        self.steps += 1

    def progress(self, report: Report) -> None:
        """Move the bar; each `log_every` steps and at the last also write losses, learning rate and speed."""
        if not self.writes:
            return
        self.shown |= {"loss": f"{report.loss:.3f}", "lr": f"{report.lr:.2g}"}
        self.bar.set_postfix(self.shown, refresh=False)
        self.bar.update()
        if report.step % self.every and report.step != self.last:
            return
        speed = self._speed()
        self.shown["waiting"] = f"{speed.get('data_share', 0):.0%}"
        norm = report.norm if math.isfinite(report.norm) else None
        values = {"loss": report.loss, "lr": report.lr, **report.losses, "grad_norm": norm}
        self._write(report.step, {"train": values, "speed": speed})

    def _speed(self) -> dict[str, float]:
        """Since the last restart: images a second, the share of the time that went into waiting for data, and the GPU's
        peak of memory; {} when there was no step."""
        if not self.steps:
            return {}
        seconds = time.perf_counter() - self.start
        speed = {"images_per_second": self.steps * self.images_per_step / seconds, "data_share": self.waited / seconds}
        if self.device.type == "cuda":
            speed["gpu_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        self.restart()
        return speed

    def quality(
        self,
        step: int,
        quality: Mapping[str, float | None],
        pictures: Mapping[str, np.ndarray],
        evaluation: Evaluation,
        worst: Sequence[Picture],
    ) -> None:
        """Write what an evaluation found; pictures: H x W x 3 by name, for TensorBoard. For the first process alone."""
        self._write(step, {"val": quality})
        with writing(self.board.log_dir):
            for name, picture in pictures.items():
                tag = f"prediction_and_truth/{name}".encode("utf-8", "backslashreplace").decode()  # no text, for one
                self.board.add_image(tag, picture, step, dataformats="HWC")
        _append(self.evaluations, evaluation.model_dump(mode="json"))
        self.page(worst)
        figures = ", ".join(f"{k} {100 * v:.1f}" for k, v in quality.items() if v is not None)
        tqdm.write(f"step {step}: {figures or 'no figures, as no segment is there'}")

    def page(self, worst: Sequence[Picture] = ()) -> None:
        """Write training.html anew."""
        if self.writes:
            write_page(self.out, worst)

    def _write(self, step: int, groups: Mapping[str, Mapping[str, float | None]]) -> None:
        line: dict[str, float | None] = {"step": step}
        with writing(self.board.log_dir):
            for group, values in groups.items():
                line |= values
                for name, value in values.items():
                    if value is not None:
                        self.board.add_scalar(f"{group}/{name}", value, step)
        _append(self.metrics, line)


def _append(path: Path, line: Mapping[str, object]) -> None:
    with writing(path), path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line, allow_nan=False) + "\n")


def _not_of_the_board(failure: threading.ExceptHookArgs) -> None:
    """TensorBoard writes in a thread, and raises again here what stopped it: told once, not as a traceback before."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


def lines_until(metrics: Path, step: int, evaluated: bool) -> list[str]:
    """The whole lines of metrics.jsonl, or of evaluations.jsonl, that belong to the first `step` steps; none when there
    is no file. InputError names one that is damaged."""
    if not step or not metrics.exists():
        return []
    return [
        line
        for line, content in read_steps(metrics, drop_half=True)
        if content["step"] < step or (content["step"] == step and (evaluated or "loss" in content))
    ]


def surroundings(process: Process) -> dict[str, str | int | None]:
    """Versions, the project's commit where this is a checkout, and what the run computes on."""
    device = describe_device(process.device)
    return versions() | {"commit": git_commit(), "processes": process.world, "device": device}


def git_commit() -> str | None:
    """The Git commit of this code, with "-dirty" where files have been changed since; None outside a Git checkout."""
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or a folder of another owner
        return None
