"""What a run tells: the progress bar, metrics.jsonl and TensorBoard's scalars."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from panoptic.files import write_json, write_text
from training.checkpoint import versions
from training.config import Config, dump_config


class Report(NamedTuple):
    """What one step came to: means over the processes. signal: 0, or the one that asks the run to stop."""

    loss: float
    losses: dict[str, float]
    lr: float
    signal: int


class Log:
    """Progress bar, metrics.jsonl and TensorBoard's tb/, by the first process only. A context manager."""

    def __init__(self, out: Path, config: Config, step: int, writes: bool) -> None:
        """Start after `step`: what an interrupted run had written beyond it is cut off."""
        self.writes = writes
        if not writes:
            return
        self.schedule = config.schedule
        self.metrics = out / "metrics.jsonl"
        write_text(out / "config.yaml", dump_config(config))
        write_json(out / "versions.json", versions())
        write_text(self.metrics, "".join(lines_until(self.metrics, step)))
        self.board = SummaryWriter(str(out / "tb"), purge_step=step + 1)
        self.bar = tqdm(
            desc=config.name,
            unit="step",
            initial=step,
            total=config.schedule.iterations,
            mininterval=0.5 if sys.stderr.isatty() else 30,
        )

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *error: object) -> None:
        if self.writes:
            self.bar.close()
            self.board.close()

    def progress(self, step: int, report: Report) -> None:
        """Move the bar; each `log_every` steps and at the last also write the losses and the learning rate."""
        if not self.writes:
            return
        self.bar.set_postfix(loss=f"{report.loss:.3f}", lr=f"{report.lr:.2g}", refresh=False)
        self.bar.update()
        if step % self.schedule.log_every == 0 or step == self.schedule.iterations:
            self._write(step, {"loss": report.loss, "lr": report.lr, **report.losses}, "train")

    def quality(self, step: int, quality: dict[str, float | None]) -> None:
        """Write the validation PQ."""
        if self.writes:
            self._write(step, quality, "val")
            tqdm.write(f"step {step}: " + ", ".join(f"{k} {100 * v:.1f}" for k, v in quality.items() if v is not None))

    def _write(self, step: int, values: Mapping[str, float | None], group: str) -> None:
        with self.metrics.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            if value is not None:
                self.board.add_scalar(f"{group}/{name}", value, step)


def lines_until(metrics: Path, step: int) -> list[str]:
    """The whole lines of metrics.jsonl that belong to the first `step` steps; none when there is no file."""
    if not step or not metrics.exists():
        return []
    lines = [line for line in metrics.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    return [line for line in lines if json.loads(line)["step"] <= step]
