"""`upsnet serve`: a run's model under a real Triton server, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from serving.repository import deploy_engine, repository_of
from serving.server import TritonServer
from upsnet.contract import MODEL
from upsnet.errors import InputError


def main(
    run: Annotated[Path | None, typer.Option(help="Deploy this run's engine first.")] = None,
    repository: Annotated[
        Path | None, typer.Option(help="Triton's model repository; default: triton_repo/ in the run.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on: 127.0.0.1 is this machine alone.")] = "127.0.0.1",
    grpc_port: int = 8001,
    http_port: int = 8000,
    metrics_port: int = 8002,
    log: Annotated[Path | None, typer.Option(help="Keep the server's output here.")] = None,
    start_timeout: Annotated[float, typer.Option(help="Seconds until the model must answer.")] = 120.0,
) -> None:
    """Serves a run's model, else the repository's, with a real Triton server. Ports of 0 are picked free."""
    if not start_timeout > 0:  # nan neither
        raise InputError(f"--start-timeout {start_timeout:g}: give seconds, more than 0")
    if run is not None:
        repository = deploy_engine(run / "engine", repository or repository_of(run))
    elif repository is None:
        raise InputError("nothing to serve: give --run, for instance runs/demo, or --repository")
    server = TritonServer(
        repository,
        host=host,
        grpc_port=grpc_port,
        http_port=http_port,
        metrics_port=metrics_port,
        log=log,
        start_timeout=start_timeout,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with server:
            ports = ", ".join(f"{name} {port}" for name, port in server.ports.items())
            print(f"Triton serves {MODEL} on {host}: {ports}. Ctrl-C stops it.", flush=True)
            server.wait()
    except KeyboardInterrupt:
        print("Triton has stopped.")
