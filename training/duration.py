"""`upsnet train plan`: how long a schedule takes on so many GPUs. Arithmetic from a measured rate; nothing is trained.

upsnet train plan --run runs/coco_r50 --gpus 1 8 64 --gigabits 100
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Annotated, NamedTuple

import typer

from training.checkpoint import load_model
from training.config import load_config
from training.schedule import Plan, make_plan
from upsnet.command_line.command import run as run_command
from upsnet.command_line.options import run_option
from upsnet.errors import InputError
from upsnet.tables import make_table, print_tables

BYTES = 4  # of a gradient
HOUR = 3600.0


class Duration(NamedTuple):
    """Of a schedule, without evaluations and checkpoints."""

    plan: Plan
    compute: float  # seconds of all steps: what the measured rate gives
    exchange: float  # seconds of all steps: summing the gradients over all processes

    @property
    def least(self) -> float:
        """Seconds, where the gradients travel while the rest of the backward pass is computed."""
        return max(self.compute, self.exchange)

    @property
    def most(self) -> float:
        """Seconds, where they travel after it."""
        return self.compute + self.exchange


def duration(plan: Plan, images_per_second: float, parameters: int, gigabits: float | None) -> Duration:
    """images_per_second: of one process. gigabits: a second, of the slowest link between two processes; None: the
    exchange takes no time. In a ring each process sends, and receives, 2 (n - 1) / n of the gradients (Patarasuk and
    Yuan, J. Parallel Distrib. Comput. 2009)."""
    share = plan.images_per_step / plan.processes
    exchange = 0.0
    if gigabits is not None:
        sent = 2 * (plan.processes - 1) / plan.processes * BYTES * parameters
        exchange = 8 * sent / (1e9 * gigabits)
    return Duration(plan, plan.iterations * share / images_per_second, plan.iterations * exchange)


def measured_rate(run: Path) -> float:
    """Images a second of one process: the median of the lines that training has written. InputError without any."""
    path = run / "metrics.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        rates = [float(line["images_per_second"]) for line in lines if "images_per_second" in line]
        rate = median(rates) / int(json.loads((run / "plan.json").read_text())["processes"])
    except (OSError, ValueError, TypeError, KeyError, ZeroDivisionError) as error:
        raise InputError(f"{run}: its metrics.jsonl and plan.json tell no rate ({error}); train some steps") from None
    return _positive(rate, f"{path}: images a second")


def main(
    run: Annotated[Path, run_option("A run of this network, which may be short: its rate, and its size.")],
    config: Annotated[Path | None, typer.Option(help="The schedule; default: the run's own.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, as schedule.images_per_step=64.")
    ] = None,
    gpus: Annotated[list[int] | None, typer.Option(min=1, help="How many GPUs (processes).")] = None,
    images_per_second: Annotated[
        float | None, typer.Option(help="Of one GPU (default: what the run's metrics.jsonl says of one process).")
    ] = None,
    gigabits: Annotated[
        float | None, typer.Option(help="A second, of the slowest link between two GPUs (default: no limit).")
    ] = None,
) -> None:
    """How long a schedule takes on so many GPUs: planned from a measured rate, not measured."""
    settings = load_config(config or run / "config.yaml", tuple(set_ or []))
    if gigabits is not None:
        _positive(gigabits, "--gigabits")
    if images_per_second is not None:
        _positive(images_per_second, "--images-per-second")
    rate = images_per_second or measured_rate(run)
    network = load_model(run / "last.safetensors")[0]
    parameters = sum(each.numel() for each in network.parameters() if each.requires_grad)
    table = make_table(
        f"planned, not measured: {settings.name}",
        *("GPUs", "images\na step", "steps", "learning\nrate", "hours, gradients\nsent meanwhile", "sent after"),
        "GPUs'\nwork",
        left=0,
    )
    for number in gpus or [1, 2, 4, 8]:
        found = duration(make_plan(settings.schedule, number), rate, parameters, gigabits)
        table.add_row(
            str(number),
            str(found.plan.images_per_step),
            f"{found.plan.iterations:,}",
            f"{found.plan.lr:.4g}",
            f"{found.least / HOUR:.4g}",
            f"{found.most / HOUR:.4g}",
            f"{found.compute / found.most:.0%}",
        )
    print_tables(table)
    print(
        f"{rate:.3g} images a second of one GPU, {parameters / 1e6:.1f} million parameters; "
        "evaluations and checkpoints come on top"
    )


def _positive(value: float, name: str) -> float:
    if not 0 < value < 1e9:  # nan neither
        raise InputError(f"{name} {value:g}: give a number, more than 0")
    return value


if __name__ == "__main__":
    run_command(main)
