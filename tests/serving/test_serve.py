"""What `upsnet serve` makes of its options and of signals, before and without a server."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
from pathlib import Path
from unittest.mock import Mock

import pytest
from typer.testing import CliRunner

from serving.listen import check_ports, loopback
from serving.serve import default_memory_limit, make_tls, parse_bytes
from serving.serve import main as serve
from serving.service import heed_signals
from tests.serving.conftest import Exported
from upsnet.command_line.command import make_app
from upsnet.errors import InputError


def test_signals() -> None:
    """The first asks for the end and the second hurries it; one that nohup ignores stays ignored."""

    async def listen() -> None:
        stop, hurry = heed_signals()
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.05)
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(stop.wait(), 10)
        assert not hurry.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.wait_for(hurry.wait(), 10)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        asyncio.run(listen())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "8.8.8.8", "myhost", "10.0.0.1"])
def test_not_for_other_machines(host: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^--host {host}: the embedded Triton .* this machine alone .* container"):
        serve(repository=tmp_path, host=host)


def test_loopback() -> None:
    assert {loopback(host) for host in ("localhost", "LocalHost", "127.0.0.1", " 127.0.0.1 ")} == {"127.0.0.1"}
    assert [loopback(host) for host in ("127.1.2.3", "::1")] == ["127.1.2.3", "::1"]


@pytest.mark.parametrize("host", ["", " ", "a\0b"])
def test_no_host_is_not_every_host(host: str) -> None:
    with pytest.raises(InputError, match=r"is no address to listen on; 127.0.0.1 is this machine alone$"):
        loopback(host)


def test_ports() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            InputError, match=f"127.0.0.1:{port} for http: Address already in use; give another http port"
        ):
            check_ports("127.0.0.1", {"grpc": 0, "http": port})
    check_ports("127.0.0.1", {"grpc": 0, "http": 0, "metrics": port})
    with pytest.raises(InputError, match=r"port must be 0-65535"):
        check_ports("127.0.0.1", {"grpc": 70000})
    with pytest.raises(InputError, match=r"^port 9001 is wanted for grpc and for metrics; give another metrics port$"):
        check_ports("127.0.0.1", {"grpc": 9001, "http": 0, "metrics": 9001})
    with pytest.raises(InputError, match=r"127.0.0.1:-1 for grpc: .*port must be 0-65535.*; give another grpc port$"):
        check_ports("127.0.0.1", {"grpc": -1})


def test_ports_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    attempt = Mock(bind=refuse, __enter__=lambda self: self, __exit__=lambda *_: None)
    monkeypatch.setattr(socket, "socket", lambda family: attempt)
    with pytest.raises(InputError, match=r"127.0.0.1:80 for http: ports below 1024 are the system's; give another"):
        check_ports("127.0.0.1", {"http": 80})


def test_run_that_cannot_be_written(exported: Exported, tmp_path: Path) -> None:
    shutil.copytree(exported.model.parent, tmp_path / "engine")
    (tmp_path / "triton_repo").symlink_to("/proc")  # nothing can be made in it
    said = rf"^{tmp_path}/triton_repo: cannot be written: .*; give another folder with --repository$"
    with pytest.raises(InputError, match=said):
        serve(run=tmp_path)


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_no_time(tmp_path: Path, seconds: float) -> None:
    with pytest.raises(InputError, match=r"^--start-timeout .*: give seconds, more than 0$"):
        serve(repository=tmp_path, start_timeout=seconds)
    with pytest.raises(InputError, match=r"^--hang-timeout .*: give seconds, more than 0$"):
        serve(repository=tmp_path, hang_timeout=seconds)
    if seconds != 0:
        with pytest.raises(InputError, match=r"^--drain .*: give seconds, 0 or more$"):
            serve(repository=tmp_path, drain=seconds)


def test_memory_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert [parse_bytes(text) for text in ("5", "2K", "1.5GiB", "3m", "4GB")] == [5, 2048, 3 << 29, 3 << 20, 4 << 30]
    for text in ("0", "-1", "much", "1X", "0.0001", "9" * 400):
        with pytest.raises(InputError, match=f"^--memory-limit {text}: give bytes, more than 0, as 6G"):
            parse_bytes(text)
    whole = default_memory_limit()
    assert whole > 0
    (tmp_path / "max").write_text(f"{1 << 20}\n")
    monkeypatch.setattr("serving.serve.CGROUP_MEMORY", tmp_path / "max")
    assert default_memory_limit() == int(0.8 * (1 << 20))
    (tmp_path / "max").write_text("max\n")
    assert default_memory_limit() >= whole


def test_help_has_every_default() -> None:
    text = CliRunner().invoke(make_app(serve), ["--help"]).output
    assert "80 % of this machine's" in text and "[default: 8.0]" in text


def test_tls_needs_both_files(tmp_path: Path) -> None:
    for cert, key, authority in ((tmp_path, None, None), (None, tmp_path, None), (None, None, tmp_path)):
        with pytest.raises(InputError, match=r"^TLS needs both --tls-cert and --tls-key$"):
            make_tls(cert, key, authority)
    assert make_tls(None, None, None) is None
