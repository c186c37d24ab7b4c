"""`upsnet deploy stage`: another model beside the one in service."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from serving.repository import engine_parts
from serving.rollouts import steps
from serving.rollouts.commands.options import DEFAULT_HEALTH, DEFAULT_WAIT, FAILED, Health, Repository, Wait
from serving.rollouts.waiting import check_health, report, wait_for_candidate
from upsnet.command_line.command import run as run_command
from upsnet.runs import find_run


def main(
    engine: Annotated[
        Path, typer.Argument(help="What `make engine` built: its folder, or the run's.", show_default=False)
    ],
    repository: Repository,
    keep: Annotated[int, typer.Option(min=1, help="Versions that have served and stay, to roll back to.")] = steps.KEPT,
    health: Health = DEFAULT_HEALTH,
    wait: Wait = DEFAULT_WAIT,
) -> None:
    """Put an engine beside the version in service, as the candidate; one that was staged before goes.

    Nobody gets it who does not name its version. Exit status 1: a service runs on the repository, and the candidate
    does not start in it.
    """
    check_health(health)
    folder = engine_folder(engine)
    record = steps.stage(repository, engine_parts(folder), source=str(folder.resolve()), keep=keep)
    assert record.candidate is not None
    same = steps.same_files(*(record.arrival(version).digests for version in (record.candidate, record.serving)))
    also = ", which has the same files" if same else ""
    print(f"staged {folder} as version {record.candidate}; version {record.serving} serves{also}")
    followed = report(wait_for_candidate(health, record, wait))
    print(f"`upsnet deploy promote --repository {shlex.quote(str(repository))}` judges it, and lets it serve")
    if not followed:
        raise typer.Exit(FAILED)


def engine_folder(engine: Path) -> Path:
    """The engine's folder, or that of a run, by its place or its name in runs/."""
    found = Path(find_run(engine))
    return found / "engine" if (found / "engine").is_dir() else found


if __name__ == "__main__":
    run_command(main)
