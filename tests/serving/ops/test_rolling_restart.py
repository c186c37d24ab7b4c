"""A promotion by a restart, as Kubernetes makes one of kubernetes.yaml: a new container beside the old one, which ends
when its clients have connected anew."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from serving.repository import deploy
from serving.rollouts import steps
from tests.serving.conftest import Exported
from tests.serving.ops.callers import Callers
from tests.serving.ops.container import container, retrained

pytestmark = [pytest.mark.triton, pytest.mark.large]
AGE = "--grpc-max-connection-age=1000"  # milliseconds, in place of serve.sh's


class Address:
    """What clients connect to: who connects from now on reaches `target`, and who is connected stays where he is."""

    def __init__(self, target: str) -> None:
        self.target, self.connected = target, 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.name = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                self.connected += 1
                host, port = self.target.split(":")
                server = socket.create_connection((host, int(port)))
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while content := source.recv(1 << 16):
                sink.sendall(content)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()


def test_rolling_restart(exported: Exported, triton_environment: Path, tmp_path: Path) -> None:
    repository = deploy(exported.model, exported.manifest_path, tmp_path / "repository")
    candidate = steps.stage(repository, retrained(exported, tmp_path / "2", 2))
    with ExitStack() as stack:
        old = stack.enter_context(ExitStack())
        first = old.enter_context(container(tmp_path / "old", triton_environment, repository, more=[AGE]))
        steps.promote(repository, candidate, {}, 1.0)
        second = stack.enter_context(container(tmp_path / "new", triton_environment, repository, more=[AGE]))
        address = Address(first.grpc)
        stack.callback(address.close)
        with Callers(address.name) as callers:
            callers.go_on()
            before = address.connected
            address.target = second.grpc
            while address.connected < before + 2:  # the client's one connection is that of the new container for sure
                callers.go_on()
            old.close()  # SIGTERM
            callers.go_on()
    assert not callers.failed
    for seen in callers.seen:
        versions = [version for _, version, _ in seen]
        assert versions == sorted(versions) and set(versions) == {"1", "2"}
