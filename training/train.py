"""`upsnet train`, also `python -m training.train --config X`; on several GPUs torchrun starts it, one process for each.

One machine: torchrun --standalone --nproc_per_node 4 -m training.train --config X. Two machines, the same on both, HOST
one of them: torchrun --nnodes 2 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint HOST:29500 -m training.train ...
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from training.config import load_config
from training.loop import train
from upsnet.command_line.command import run

SIGNALLED = 128  # plus the signal's number: what a shell reports of a process that a signal ended


def main(
    config: Annotated[Path, typer.Option(help="YAML configuration, see training/configs/.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default: runs/NAME.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, as schedule.lr=0.001; repeatable.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    init: Annotated[
        Path | None, typer.Option(help="Start from this checkpoint's weights (fine-tuning); a resumed run has its own.")
    ] = None,
    iterations: Annotated[int | None, typer.Option(help="Steps, instead of the configured length.")] = None,
) -> None:
    """Train a network. A run that was interrupted goes on from its last checkpoint with the same command."""
    overrides = list(set_ or [])
    if iterations is not None:
        overrides += [f"schedule.iterations={iterations}", "schedule.images=null"]
    settings = load_config(config, tuple(overrides))
    signal = train(settings, out or Path("runs") / settings.name, device, init=init)
    if signal:
        print(f"stopped by signal {signal}, checkpoint written; the same command goes on from there", file=sys.stderr)
        raise typer.Exit(SIGNALLED + signal)


if __name__ == "__main__":
    run(main)
