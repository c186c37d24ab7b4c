"""`upsnet viewer`: the page in the browser, until Ctrl-C."""

from __future__ import annotations

import ipaddress
import socket
from typing import Annotated

import typer
import uvicorn

from upsnet.command_line.command import run as run_command
from upsnet.command_line.options import TlsCa, TlsCert, TlsKey
from upsnet.errors import InputError
from upsnet.runtimes.options import SERVER
from upsnet.runtimes.tls import Tls
from upsnet.viewer.album import Album
from upsnet.viewer.app import make_app
from upsnet.viewer.models import Models

MOST_CONNECTIONS = 64
CLOSE_SECONDS = 3


def main(
    url: Annotated[list[str] | None, typer.Option(help=f"A server's gRPC (default: {SERVER}).")] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(help="More models, as upsnet.load takes them.", metavar="SOURCE"),
    ] = None,
    host: Annotated[str, typer.Option(help="Where the page is; 127.0.0.1 is this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8010,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
) -> None:
    """A page in the browser: drop a photo, see its segments, compare two models."""
    tls = Tls(tls_ca, tls_cert, tls_key) if tls_ca or tls_cert else None
    models = Models(url or [SERVER], compare or [], tls)
    listener = listen(host, port)
    shown, chosen = listener.getsockname()[:2]
    local = ipaddress.ip_address(shown).is_loopback
    try:
        print(f"http://{f'[{shown}]' if ':' in shown else shown}:{chosen}/ (Ctrl-C ends it)", flush=True)
        serve(listener, models, local)
    finally:
        models.close()


def serve(listener: socket.socket, models: Models, local: bool) -> None:
    config = uvicorn.Config(
        make_app(models, Album(), local),
        http="h11",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=CLOSE_SECONDS,
    )
    uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """InputError where it cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot listen on {host}:{port}: {reason}; give another --port, or 0") from None


if __name__ == "__main__":
    run_command(main)
