"""Starting and stopping the real server: what is missing is said in one line, and nothing is left behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from serving.repository import deploy
from serving.serve import main as serve
from serving.server import TritonServer, pick_ports
from tests.serving.conftest import Exported
from upsnet.errors import InputError
from upsnet.geometry import NetworkBatch
from upsnet.runtimes.triton import TritonPredictor

ROOT = Path(__file__).resolve().parents[2]


def members(group: int) -> list[int]:
    """The live processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def regions(port: int) -> list[str]:
    return [path.name for path in Path("/dev/shm").glob(f"upsnet-*-{port}-*")]


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def wait_until_gone(group: int, port: int) -> None:
    deadline = time.monotonic() + 20
    while (members(group) or regions(port)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not members(group)
    assert not regions(port)


@pytest.mark.triton
def test_dead_model_is_noticed_and_stop_leaves_nothing(
    exported: Exported, repository: Path, triton_environment: Path
) -> None:
    server = TritonServer(repository, environment=triton_environment)
    with server:
        group, port, scratch = server.pid, port_of(server.url), server.log.parent
        assert len(members(group)) == 2  # the server and its model's process
        assert len(regions(port)) == 1
        server.check()
        predictor = TritonPredictor(server.url, manifest=exported.manifest)
        (stub,) = [pid for pid in members(group) if pid != group]
        os.kill(stub, signal.SIGKILL)
        with pytest.raises(InputError, match=r"the model in the Triton server at .* has died; restart the server"):
            predictor.predict(
                NetworkBatch(np.zeros((1, 32, 32, 3), np.uint8), np.ones((1, 2), np.int32), np.ones(1, np.float32))
            )
        with pytest.raises(InputError, match=r"a test inference failed: .* has died"):
            server.check()
        predictor.close()
        server.stop(drain=1)  # Triton would wait 30 s for the dead process
    assert not members(group)
    assert not regions(port)
    assert not scratch.exists()
    with pytest.raises(InputError, match=r"not running"):
        _ = server.pid


@pytest.mark.triton
def test_ends_with_the_command_that_serves(exported: Exported, tmp_path: Path, triton_environment: Path) -> None:
    repository = deploy(exported.model, exported.manifest_path, tmp_path)
    ports = ["--grpc-port=0", "--http-port=0", "--metrics-port=0"]
    command = [sys.executable, "-m", "upsnet", "serve", f"--repository={repository}", *ports]
    environment = os.environ | {"UPSNET_TRITON_ENV": str(triton_environment), "TMPDIR": str(tmp_path)}
    endings = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]
    with ExitStack() as stack:
        hosts = [
            stack.enter_context(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True))
            for _ in endings
        ]
        started = []
        for host in hosts:
            assert host.stdout is not None
            ready = re.search(r"grpc (\d+), http", host.stdout.readline())
            assert ready is not None
            (group,) = [pid for pid in children(host.pid) if len(members(pid)) == 2]
            started.append((group, int(ready[1])))
        for host, ending in zip(hosts, endings, strict=True):
            host.send_signal(ending)
        rest = [host.stdout.read() for host in hosts if host.stdout]
    assert [host.returncode for host in hosts] == [0, 0, -signal.SIGKILL]
    assert rest == ["Triton has stopped.\n"] * 2 + [""]
    for group, port in started[:2]:
        assert not members(group)
        assert not regions(port)
    wait_until_gone(*started[2])  # nobody was left to stop this one: the kernel told it


@pytest.mark.triton
def test_server_that_dies_is_reported(repository: Path, triton_environment: Path) -> None:
    (repository / "upsnet/1/model.onnx").write_bytes(b"not a model")
    server = TritonServer(repository, environment=triton_environment)
    with pytest.raises(
        InputError, match=r"^the Triton server did not start: .* Load model from .*onnx failed"
    ) as caught:
        server.start()
    assert "\n" not in str(caught.value)
    assert not regions(server.ports["grpc"])


@pytest.mark.triton
def test_start_that_hangs_is_ended(repository: Path, triton_environment: Path, tmp_path: Path) -> None:
    (repository / "upsnet/1/model.py").write_text("import time\ntime.sleep(60)\n")
    server = TritonServer(repository, environment=triton_environment, log=tmp_path / "log", start_timeout=1)
    with pytest.raises(InputError, match=r"^the Triton server was not ready after 1 s: its log says: "):
        server.start()
    assert (tmp_path / "log").read_text()
    assert not regions(server.ports["grpc"])


@pytest.mark.triton
def test_port_in_use(server: TritonServer, repository: Path, triton_environment: Path) -> None:
    port = server.ports["grpc"]
    second = TritonServer(repository, environment=triton_environment, grpc_port=port)
    with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{port} for grpc: Address already in use"):
        second.start()
    server.check()


@pytest.mark.triton
def test_listens_on_this_machine_alone(server: TritonServer) -> None:
    for port in server.ports.values():
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), timeout=5)


@pytest.mark.triton
def test_leaves_the_repository_as_it_was(server: TritonServer) -> None:
    found = {str(path.relative_to(server.repository)) for path in server.repository.rglob("*") if path.is_file()}
    files = {name for name in found if "__pycache__" not in name}
    model = {"model.py", "model.onnx", "manifest.json"}
    assert files == {"upsnet/config.pbtxt", "upsnet/configs/cpu.pbtxt"} | {f"upsnet/1/{name}" for name in model}


@pytest.mark.triton
@pytest.mark.parametrize("name", ["model.onnx", "manifest.json"])
def test_missing_model(repository: Path, triton_environment: Path, name: str) -> None:
    (repository / "upsnet/1" / name).unlink()
    with pytest.raises(InputError, match=f"no model to serve: .*{name} is missing; make one with `make engine`"):
        TritonServer(repository, environment=triton_environment).start()


def test_pick_ports() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            InputError, match=f"127.0.0.1:{port} for http: Address already in use; give another http port"
        ):
            pick_ports("127.0.0.1", {"grpc": 0, "http": port})
    ports = pick_ports("127.0.0.1", {"grpc": 0, "http": 0, "metrics": port})
    assert ports["metrics"] == port
    assert len(set(ports.values())) == 3
    with pytest.raises(InputError, match=r"port must be 0-65535"):
        pick_ports("127.0.0.1", {"grpc": 70000})
    with pytest.raises(InputError, match=r"cannot listen on no.such.host"):
        pick_ports("no.such.host.invalid", {"grpc": 0})
    with pytest.raises(InputError, match=r"^port 9001 is wanted for grpc and for metrics; give another metrics port$"):
        pick_ports("127.0.0.1", {"grpc": 9001, "http": 0, "metrics": 9001})
    with pytest.raises(InputError, match=r"127.0.0.1:-1 for grpc: .*port must be 0-65535.*; give another grpc port$"):
        pick_ports("127.0.0.1", {"grpc": -1})
    for host in ("8.8.8.8", "::1"):
        with pytest.raises(InputError, match=r"--host is an IPv4 address of this machine$"):
            pick_ports(host, {"grpc": 0})


@pytest.mark.parametrize("host", ["", " ", "a\0b"])
def test_no_host_is_not_every_host(host: str) -> None:
    with pytest.raises(InputError, match=r"is no address to listen on; 127.0.0.1 is this machine alone$"):
        pick_ports(host, {"grpc": 0})


def test_ports_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "socket", lambda: Mock(bind=refuse))
    with pytest.raises(InputError, match=r"127.0.0.1:80 for http: ports below 1024 are the system's; give another"):
        pick_ports("127.0.0.1", {"http": 80})


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_no_time_to_start(tmp_path: Path, seconds: float) -> None:
    with pytest.raises(InputError, match=r"^--start-timeout .*: give seconds, more than 0$"):
        serve(repository=tmp_path, start_timeout=seconds)


@pytest.mark.triton
def test_log_that_cannot_be_written(repository: Path, triton_environment: Path, tmp_path: Path) -> None:
    server = TritonServer(repository, environment=triton_environment, log=tmp_path)
    with pytest.raises(InputError, match=f"^{tmp_path}: cannot be written: Is a directory$"):
        server.start()
