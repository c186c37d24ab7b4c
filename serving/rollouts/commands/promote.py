"""`upsnet deploy promote`: the candidate serves, where the gate has nothing against it."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from serving.rollouts import steps
from serving.rollouts.canary import PHOTOS, SECONDS, CanaryLimits, parse_share, run_canary
from serving.rollouts.commands.options import DEFAULT_HEALTH, DEFAULT_WAIT, FAILED, Health, Repository, Wait
from serving.rollouts.record import Record, read_record
from serving.rollouts.waiting import check_health, report, wait_until_serving
from upsnet.command_line.command import run as run_command
from upsnet.errors import InputError


def main(
    repository: Repository,
    canary: Annotated[
        str | None, typer.Option(help="Then this share of the callers' photos, as 10%, is mirrored to it first.")
    ] = None,
    canary_photos: Annotated[int, typer.Option(min=1, help="Photos that must be compared.")] = PHOTOS,
    canary_seconds: Annotated[float, typer.Option(min=1, help="Seconds in which they must have come.")] = SECONDS,
    without_gate: Annotated[
        str | None, typer.Option(help="Promote unjudged, for this reason, which the history keeps.", metavar="REASON")
    ] = None,
    health: Health = DEFAULT_HEALTH,
    wait: Wait = DEFAULT_WAIT,
) -> None:
    """Judge the candidate against the version in service, and let it serve where it is as good.

    Exit status 1: it was refused, and the history has the reasons; or a service runs on the repository, and does not
    follow.
    """
    check_health(health)
    share = None if canary is None else parse_share(canary)
    record = read_record(repository)
    version = steps.candidate_of(repository, record)
    steps.check_files(repository, record, version)
    begun = time.monotonic()
    reasons: list[str] = []
    figures: dict[str, Any] = {}
    if without_gate is None:
        raise InputError("the gate is not here yet; give --without-gate REASON")
    if share is not None and not reasons:
        verdict = run_canary(repository, record, health, share, CanaryLimits(canary_photos, canary_seconds))
        reasons, figures["canary"] = verdict.reasons, verdict.figures
    seconds = round(time.monotonic() - begun, 3)
    if reasons:
        steps.refuse(repository, record, reasons, figures, seconds)
        refused(record, version, reasons)
    after = steps.promote(repository, record, figures, seconds, forced=without_gate or "")
    print(f"version {version} is promoted; version {after.previous} is what a rollback returns to")
    if not report(wait_until_serving(health, after, wait)):
        raise typer.Exit(FAILED)


def refused(record: Record, version: int, reasons: list[str]) -> None:
    for reason in reasons:
        print(f"refused: {reason}", file=sys.stderr)
    print(f"version {version} stays the candidate; version {record.serving} serves", file=sys.stderr)
    raise typer.Exit(FAILED)


if __name__ == "__main__":
    run_command(main)
