"""`upsnet serve`: a run's models under a real Triton server, until Ctrl-C, SIGTERM or a closed terminal."""

from __future__ import annotations

import asyncio
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from serving.fleet import STANDBY
from serving.front.recorder import PHOTOS, RecorderSettings
from serving.front.tls import Tls
from serving.listen import loopback
from serving.repository import repository_of
from serving.rollouts.canary import parse_share
from serving.rollouts.of_run import deploy_run
from serving.service import Settings, serve
from upsnet.command_line.command import run as run_command
from upsnet.command_line.options import run_option
from upsnet.errors import InputError

SHARE = 0.8  # of the memory of this machine or container
CGROUP_MEMORY = Path("/sys/fs/cgroup/memory.max")
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def main(
    run: Annotated[Path | None, run_option("Deploy this run's engine first.")] = None,
    repository: Annotated[
        Path | None, typer.Option(help="Triton's model repository; default: triton_repo/ in the run.")
    ] = None,
    host: Annotated[str, typer.Option(help="A loopback address: 127.0.0.1 or ::1.")] = "127.0.0.1",
    grpc_port: Annotated[int, typer.Option(help="gRPC, for clients. Ports of 0 are picked free.")] = 8001,
    http_port: Annotated[int | None, typer.Option(help="Triton's REST; closed unless this is given.")] = None,
    metrics_port: Annotated[int, typer.Option(help="/health and /metrics.")] = 8002,
    log: Annotated[Path | None, typer.Option(help="Keep Triton's output in this file.")] = None,
    start_timeout: Annotated[float, typer.Option(help="Seconds until the models must answer.")] = 120.0,
    hang_timeout: Annotated[float, typer.Option(help="Seconds without any answer: Triton is started anew.")] = 60.0,
    drain: Annotated[float, typer.Option(help="Seconds for requests under way when the service stops.")] = 8.0,
    memory_limit: Annotated[
        str | None,
        typer.Option(
            help="Of Triton's processes, as 6G; above it they are started anew.", show_default="80 % of this machine's"
        ),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="The server's certificate, with its chain (PEM).")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key (PEM).")] = None,
    tls_client_ca: Annotated[Path | None, typer.Option(help="Only clients with a certificate of it (PEM).")] = None,
    access_log: Annotated[Path | None, typer.Option(help="A JSON line for each request.")] = None,
    otlp_endpoint: Annotated[str | None, typer.Option(help="OpenTelemetry traces go to this gRPC address.")] = None,
    standby: Annotated[
        float, typer.Option(help="Seconds that the version before is kept, so that a rollback is at once.")
    ] = STANDBY,
    no_candidate: Annotated[
        bool, typer.Option("--no-candidate", help="Leave the candidate of the roll-outs alone.")
    ] = False,
    record: Annotated[
        Path | None, typer.Option(help="Keep some of the callers' photos in this folder, for its user alone.")
    ] = None,
    record_share: Annotated[str, typer.Option(help="Of the requests whose photos are kept.")] = "1%",
    record_photos: Annotated[int, typer.Option(help="As many are kept, the newest.")] = PHOTOS,
    state: Annotated[Path | None, typer.Option(help="Keep the state of the service in this JSON file.")] = None,
) -> None:
    """Serves a run's models, else the repository's, with a real Triton server on this machine."""
    for name, seconds in (("start", start_timeout), ("hang", hang_timeout)):
        if not seconds > 0:  # nan neither
            raise InputError(f"--{name}-timeout {seconds:g}: give seconds, more than 0")
    for name, seconds in (("drain", drain), ("standby", standby)):
        if not seconds >= 0:
            raise InputError(f"--{name} {seconds:g}: give seconds, 0 or more")
    host = loopback(host)
    limit = default_memory_limit() if memory_limit is None else parse_bytes(memory_limit)
    tls = make_tls(tls_cert, tls_key, tls_client_ca)
    if record_photos < 1:
        raise InputError(f"--record-photos {record_photos}: give a number, 1 or more")
    share = parse_share(record_share, "--record-share")
    if run is not None:
        repository = deploy_run(run / "engine", repository or repository_of(run))
    elif repository is None:
        raise InputError("nothing to serve: give --run, for instance runs/demo, or --repository")
    settings = Settings(
        repository=repository,
        host=host,
        grpc_port=grpc_port,
        http_port=http_port,
        metrics_port=metrics_port,
        log=log,
        start_timeout=start_timeout,
        hang_timeout=hang_timeout,
        drain=drain,
        memory_limit=limit,
        tls=tls,
        access_log=access_log,
        otlp_endpoint=otlp_endpoint,
        state=state,
        standby=standby,
        candidates=not no_candidate,
        record=RecorderSettings(record, share, record_photos) if record is not None else None,
    )
    asyncio.run(serve(settings))
    print("Triton has stopped.")


def make_tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> Tls | None:
    if cert is not None and key is not None:
        return Tls(cert, key, client_ca)
    if (cert, key, client_ca) != (None, None, None):
        raise InputError("TLS needs both --tls-cert and --tls-key")
    return None


def parse_bytes(text: str) -> int:
    """'6G', '512MiB', '1000000' -> bytes."""
    found = re.fullmatch(r"(\d{1,18}(?:\.\d{1,9})?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if found is None or not (size := int(float(found[1]) * UNITS[found[2].upper()])):
        raise InputError(f"--memory-limit {text}: give bytes, more than 0, as 6G or 512M (powers of 1024)")
    return size


def default_memory_limit() -> int:
    """A share of what this machine has, or this container may use."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        memory = min(memory, int(CGROUP_MEMORY.read_text()))
    return int(memory * SHARE)


if __name__ == "__main__":
    run_command(main)
