"""`upsnet deploy promote`: the candidate serves, where the gate has nothing against it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from serving.repository import repository_of
from serving.rollouts import steps
from serving.rollouts.canary import PHOTOS, SECONDS, CanaryLimits, check_service, parse_share, run_canary
from serving.rollouts.commands.options import (
    DEFAULT_HEALTH,
    DEFAULT_WAIT,
    FAILED,
    Health,
    Repository,
    SecretFile,
    Server,
    Wait,
)
from serving.rollouts.control import check_containers, taking_up
from serving.rollouts.gate import GateOptions, hold_gate
from serving.rollouts.record import Record, check_same, read_record
from serving.rollouts.running import Containers
from serving.rollouts.waiting import check_health, report_taken_up, wait_until_serving
from upsnet.command_line.command import run as run_command
from upsnet.command_line.options import GtFolder, GtJson, Images, TlsCa, TlsCert, TlsKey, run_option
from upsnet.errors import InputError
from upsnet.parity.gate import GateLimits
from upsnet.runtimes.tls import Tls

LIMITS, GATE = GateLimits(), GateOptions()


def main(
    repository: Repository,
    gt_json: GtJson = None,
    gt_folder: GtFolder = None,
    images: Images = None,
    photos: Annotated[
        Path | None, typer.Option(help="A folder of photos without truth, in place of a data set.")
    ] = None,
    run: Annotated[
        Path | None,
        run_option(
            "Its validation set is the data set; default: the run that the repository is in. Also for --against."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N photos.")] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Compare with this runtime of --run, as pytorch.", show_default="the version in service"),
    ] = None,
    max_pq_drop: Annotated[
        float, typer.Option(min=0, max=1, help="PQ may be this much lower; 0.005 is half a point.")
    ] = LIMITS.max_pq_drop,
    min_pq: Annotated[float, typer.Option(min=0, max=1, help="PQ that it must reach; 0.5 is 50.")] = LIMITS.min_pq,
    min_identical: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Needed share of identical pixels.", show_default="none where there is truth"),
    ] = LIMITS.min_identical,
    other_size: Annotated[bool, typer.Option(help="Its network size and largest batch may be others.")] = False,
    deadline: Annotated[float, typer.Option(min=0.1, help="Seconds for each answer.")] = LIMITS.seconds,
    max_latency_ratio: Annotated[
        float, typer.Option(min=0.01, help="Latency it may take, as a multiple of that of the version in service.")
    ] = GATE.max_latency_ratio,
    concurrency: Annotated[int, typer.Option(min=1, help="Callers at once, for the latency.")] = GATE.concurrency,
    load_seconds: Annotated[
        float, typer.Option(min=0, help="Seconds of that load on each version; 0: latency is not judged.")
    ] = GATE.seconds,
    canary: Annotated[
        str | None, typer.Option(help="Then this share of the callers' requests, as 10%, is mirrored to it.")
    ] = None,
    canary_photos: Annotated[int, typer.Option(min=1, help="Photos that must be compared.")] = PHOTOS,
    canary_seconds: Annotated[float, typer.Option(min=1, help="Seconds in which they must have come.")] = SECONDS,
    without_gate: Annotated[
        str | None, typer.Option(help="Promote unjudged, for this reason; the history keeps it.", metavar="REASON")
    ] = None,
    server: Server = None,
    candidate: Annotated[
        str | None,
        typer.Option(help="host:port of the candidate's container: the gate asks it and the first --server."),
    ] = None,
    secret_file: SecretFile = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    health: Health = DEFAULT_HEALTH,
    wait: Wait = DEFAULT_WAIT,
) -> None:
    """Judge the candidate against the version in service, and let it serve where it is as good.

    Without a service at --health it is judged on private servers. Exit status 1: it was refused, and the history has
    the reasons; or a service runs on the repository, and does not follow.
    """
    check_health(health)
    share = None if canary is None else parse_share(canary)
    limits = GateLimits(
        max_pq_drop=max_pq_drop,
        min_pq=min_pq,
        min_identical=min_identical,
        other_size=other_size,
        seconds=deadline,
    )
    if (gt_json, photos, run) == (None, None, None):
        run = run_of(repository)
    options = GateOptions(
        gt_json=gt_json,
        gt_folder=gt_folder,
        images=images,
        photos=photos,
        limit=limit,
        run=run,
        against=against,
        limits=limits,
        max_latency_ratio=max_latency_ratio,
        concurrency=concurrency,
        seconds=load_seconds,
    )
    if without_gate is not None and not without_gate.strip():
        raise InputError("--without-gate: give the reason, which the history keeps")
    if candidate is not None and not server:
        raise InputError("--candidate: give --server too, the container with the version in service")
    tls = Tls.of_files(tls_ca, tls_cert, tls_key)
    record = read_record(repository)
    version = steps.candidate_of(repository, record)
    steps.check_files(repository, record, version)
    check_containers(server or (), secret_file, repository, version, tls)
    if share is not None:
        check_service(record, health)
    begun = time.monotonic()
    reasons: list[str] = []
    figures: dict[str, Any] = {}
    if without_gate is None:
        containers = Containers(server[0], candidate) if server and candidate is not None else None
        with blaming_other_steps(repository, record):
            result = hold_gate(repository, record, options, health=health, tls=tls, containers=containers)
        reasons, figures["gate"] = result.reasons, result.figures
        print("\n".join(result.lines), flush=True)
    if share is not None and not reasons:
        bounds = CanaryLimits(canary_photos, canary_seconds, min_identical, max_latency_ratio, deadline)
        with blaming_other_steps(repository, record):
            verdict = run_canary(repository, record, health, share, bounds)
        reasons, figures["canary"] = verdict.reasons, verdict.figures
        print("\n".join(verdict.lines), flush=True)
    seconds = round(time.monotonic() - begun, 3)
    if reasons:
        steps.refuse(repository, record, reasons, figures, seconds)
        for reason in reasons:
            print(f"refused: {reason}", file=sys.stderr)
        print(f"version {version} stays the candidate; version {record.serving} serves", file=sys.stderr)
        raise typer.Exit(FAILED)
    steps.check_files(repository, record, version)  # those that were judged
    with taking_up(server or (), secret_file, repository, version, tls):
        after = steps.promote(repository, record, figures, seconds, forced=without_gate or "")
    print(f"version {version} is promoted; version {after.previous} is what a rollback returns to")
    if not report_taken_up(server or (), wait_until_serving(health, after, wait), version):
        raise typer.Exit(FAILED)


@contextmanager
def blaming_other_steps(repository: Path, record: Record) -> Iterator[None]:
    """What goes wrong where somebody has made another step is that step's doing: versions come and go with it."""
    try:
        yield
    except InputError as error:
        try:
            check_same(read_record(repository), record)
        except InputError as moved:
            raise moved from error
        raise


def run_of(repository: Path) -> Path | None:
    """The run whose own repository this is."""
    run = repository.resolve().parent
    return run if repository_of(run) == repository.resolve() and (run / "config.yaml").is_file() else None


if __name__ == "__main__":
    run_command(main)
