"""`upsnet train`, also `python -m training.train --config X`; `--processes 4` is torchrun's four processes, `--nodes 2`
the same command on two machines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from training.config import load_config
from training.distributed import end_process, end_status, first_to_fail, launched_rank
from training.fine_tuning import ClassRule
from training.launch import SIGNALLED, launch, machines, process_count
from training.loop import train
from training.step import TrainingError
from upsnet.command_line.command import run
from upsnet.datasets.split import split_in
from upsnet.errors import InputError


def main(
    config: Annotated[Path, typer.Option(help="YAML configuration, see training/configs/.")],
    data: Annotated[
        str | None,
        typer.Option(
            help="A folder, instead of the configuration's data: train.json and val.json in the usual layout, or the "
            "shards train.shards.json and val.shards.json; these may be behind a URL."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default: runs/NAME.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, as schedule.lr=0.001; repeatable.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    init: Annotated[
        Path | None, typer.Option(help="Start from this checkpoint's weights (fine-tuning); a resumed run has its own.")
    ] = None,
    classes: Annotated[
        ClassRule | None,
        typer.Option(
            help="What --init takes of the classes: by-name (those with the name of one of its; the default), new "
            "(none), exact (all, and other categories are refused)."
        ),
    ] = None,
    iterations: Annotated[int | None, typer.Option(help="Steps, instead of the configured length.")] = None,
    processes: Annotated[
        str, typer.Option(help="How many processes on this machine share each step; gpu: one on each GPU.")
    ] = "1",
    nodes: Annotated[
        str,
        typer.Option(help="How many machines share each step, 2, or 1:4 where they may come and go; same line on all."),
    ] = "1",
    rendezvous: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where the machines meet; HOST is one of them.")
    ] = None,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="How often all processes start again, from the last checkpoint, where one ends.")
    ] = 0,
) -> None:
    """Train a network. A run that was interrupted goes on from its last checkpoint with the same command."""
    overrides = [*_data_overrides(data), *(set_ or [])]
    if iterations is not None:
        overrides += [f"schedule.iterations={iterations}", "schedule.images=null"]
    try:
        if classes and not init:
            raise InputError(f"--classes {classes}: says what --init takes of a checkpoint; give --init too")
        settings = load_config(config, tuple(overrides))
        out = out or Path("runs") / settings.name
        count = process_count(processes)
        where = machines(nodes, rendezvous, count, settings.schedule)
        if count > 1 or where.most > 1 or max_restarts:
            arguments = [f"--config={config}", f"--out={out}", f"--device={device}"]
            arguments += [f"--init={init}"] if init else []
            arguments += [f"--classes={classes}"] if classes else []
            arguments += [f"--set={each}" for each in overrides]
            raise typer.Exit(launch(count, arguments, str(out), where, max_restarts))
        signal = train(settings, out, device, init=init, classes=classes or "by-name")
    except (InputError, TrainingError) as error:
        if first_to_fail(error):
            bar = "\n" if launched_rank() else ""  # the first process's progress, which may stand there unfinished
            print(f"{bar}error: {error}", file=sys.stderr)
        end_process(end_status(error))
    if signal:
        if launched_rank() == 0:
            words = f"stopped by signal {signal}, checkpoint written; the same command goes on from there"
            print(words, file=sys.stderr)
        raise typer.Exit(SIGNALLED + signal)


def _data_overrides(folder: str | None) -> list[str]:
    """The configuration's keys of the train and val splits that lie in a folder or behind a URL."""
    splits = {} if folder is None else {name: split_in(folder, name) for name in ("train", "val")}
    return [f"data.{name}={split.model_dump_json()}" for name, split in splits.items()]


if __name__ == "__main__":
    run(main)
