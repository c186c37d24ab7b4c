"""A server of a run, for as long as the viewer runs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from upsnet.errors import InputError
from upsnet.runtimes.address import parse_address
from upsnet.runtimes.connection import Connection
from upsnet.runtimes.kserve import Ask, Server, Steps, call
from upsnet.workshop import load_module

START_SECONDS = 130.0  # `upsnet serve` gives up before
END_SECONDS = 15.0
LOOK_SECONDS = 0.2


def nothing_listens(url: str) -> bool:
    """Whether a server could listen there: nobody does, and it is this machine."""
    host, _, port = parse_address(url).rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2):
            return False
    except ConnectionRefusedError:
        return True
    except OSError:
        return False


@contextmanager
def serving(run: Path, url: str) -> Iterator[None]:
    """`upsnet serve --run`, until this ends; inside, it answers at `url`. InputError where it does not start.

    It ends with this process, whatever ends that. Its own lines go to this terminal.
    """
    launcher = load_module("serving.processes", "upsnet viewer --run").LAUNCHER
    host, _, port = parse_address(url).rpartition(":")
    command = [sys.executable, "-m", "upsnet", "serve", "--run", str(run), "--host", host.strip("[]")]
    command += ["--grpc-port", port, "--metrics-port", "0"]
    child = subprocess.Popen([sys.executable, "-c", launcher, str(os.getpid()), *command], stdin=subprocess.DEVNULL)
    try:
        _wait(child, url)
        yield
    finally:
        child.terminate()
        try:
            child.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _wait(child: subprocess.Popen[bytes], url: str) -> None:
    connection = Connection(Server.of(url, None, 2.0, 0))
    try:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if child.poll() is not None:
                raise InputError("the server has not started; its line above says why")
            if connection.run(_is_ready(connection.server)):
                return
            time.sleep(LOOK_SECONDS)
        raise InputError(f"the server has not answered within {START_SECONDS:g} s")
    finally:
        connection.close()


def _is_ready(server: Server) -> Steps[bool]:
    """Asks what monitors ask all the time, of which a server that starts makes no line."""
    try:
        return bool((yield from call(server, Ask("ServerReady", {}))).ready)
    except InputError:
        return False
