"""`upsnet viewer`: the page in the browser, until Ctrl-C."""

from __future__ import annotations

import errno
import ipaddress
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
import uvicorn

from upsnet.command_line.command import run as run_command
from upsnet.command_line.options import TlsCa, TlsCert, TlsKey, run_option
from upsnet.errors import InputError
from upsnet.files import PathLike
from upsnet.runtimes.open import find_model
from upsnet.runtimes.options import SERVER, RuntimeOptions
from upsnet.runtimes.tls import Tls
from upsnet.sources import find_sources
from upsnet.viewer.album import Album, open_photo
from upsnet.viewer.app import make_app
from upsnet.viewer.connections import Connection
from upsnet.viewer.guard import Guard
from upsnet.viewer.models import Models
from upsnet.viewer.own_server import nothing_listens, serving

OF_A_RUN = {"onnxruntime": "onnxruntime", "pytorch": "torch"}  # runtimes that work on every machine: their packages
CLOSE_SECONDS = 3
FIRST_PHOTOS = 6


def main(
    url: Annotated[
        list[str] | None, typer.Option(help=f"Servers: host:port of their gRPC (default: {SERVER}).")
    ] = None,
    run: Annotated[
        Path | None,
        run_option("Serve this run where no server is at the first --url, and offer its other runtimes."),
    ] = None,
    compare: Annotated[
        list[str] | None, typer.Option(help="More models, as upsnet.load takes them.", metavar="SOURCE")
    ] = None,
    photos: Annotated[
        Path | None, typer.Option(help=f"A folder (or one photo): the list of photos begins with {FIRST_PHOTOS} of it.")
    ] = None,
    host: Annotated[str, typer.Option(help="Where the page is; 127.0.0.1 is this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8010,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
) -> None:
    """A page in the browser: give it a photo, see its segments, compare two models."""
    tls = Tls.of_files(tls_ca, tls_cert, tls_key)
    urls = url or [SERVER]
    with ExitStack() as stack:
        listener = stack.enter_context(listen(host, port))
        own = list(of_run(run))
        models = stack.enter_context(closing(Models.of(urls, [*own, *map(RuntimeOptions, compare or [])], tls)))
        album = Album()
        for content, name in first_photos(photos):
            album.add(open_photo(content, name))
        if run is not None and not nothing_listens(urls[0]):
            print(f"The page asks the server at {urls[0]}, whatever it serves, and {run} in this process.")
        elif run is not None:
            print(f"No server answers at {urls[0]}: starting one for {run}.", flush=True)
            try:
                stack.enter_context(serving(run, urls[0]))
            except InputError as error:
                if not own:
                    raise
                print(f"{error}. The page has the other runtimes of {run}.", file=sys.stderr)
        shown, chosen = listener.getsockname()[:2]
        local = ipaddress.ip_address(shown).is_loopback
        if not local:
            print("The page has no password: whoever reaches this address can use it.", file=sys.stderr)
        print(f"http://{f'[{shown}]' if ':' in shown else shown}:{chosen}/ (Ctrl-C ends it)", flush=True)
        with suppress(KeyboardInterrupt):  # which uvicorn raises once more after it has stopped
            make_server(make_app(models, album, local)).run(sockets=[listener])


def of_run(run: Path | None) -> Iterator[RuntimeOptions]:
    """What opens a run on any machine."""
    for name, package in OF_A_RUN.items():
        if run is not None and find_spec(package):
            with suppress(InputError):
                find_model(run, name)
                yield RuntimeOptions(run, name)


def first_photos(source: PathLike | None) -> Iterator[tuple[bytes, str]]:
    """In the order in which they are added: the first one last."""
    if source is None:
        return
    found = [each for each in find_sources([source]) if not each.is_video][:FIRST_PHOTOS]
    for each in found[::-1]:
        yield each.path.read_bytes(), each.path.name


def make_server(app: Guard) -> uvicorn.Server:
    """It runs until SIGINT or SIGTERM."""
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=CLOSE_SECONDS,
    )
    return uvicorn.Server(config)


def listen(host: str, port: int) -> socket.socket:
    """InputError where it cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server((str(address[0]), port), family=family)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        is_port = isinstance(error, OSError) and error.errno in (errno.EADDRINUSE, errno.EACCES)
        cure = "give another --port, or 0" if is_port else "give an address of this machine as --host"
        raise InputError(f"cannot listen on {host}:{port}: {reason}; {cure}") from None


if __name__ == "__main__":
    run_command(main)
