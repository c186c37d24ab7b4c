"""`upsnet deploy discard`: the candidate goes."""

from __future__ import annotations

from serving.rollouts import steps
from serving.rollouts.commands.options import Repository
from serving.rollouts.record import read_record
from upsnet.command_line.command import run as run_command


def main(repository: Repository) -> None:
    """Remove the candidate and its files; the version in service goes on."""
    version = steps.candidate_of(repository, read_record(repository))
    record = steps.discard(repository)
    print(f"version {version} is gone; version {record.serving} serves")


if __name__ == "__main__":
    run_command(main)
