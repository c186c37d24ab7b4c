"""What breaks while people ask: each request ends in an answer or an error, and the service is well again.

How long it takes to be well is recorded as a property of the test (`--junit-xml`) and printed (`-s`), and not judged.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import trustme

from serving.load_test.asking import Server, ask_alone
from serving.load_test.questions import Answer, tensor_question
from serving.repository import deploy
from tests.conftest import ROOT
from tests.serving.conftest import Exported, make_request
from tests.serving.soak.light_load import under_load
from tests.serving.soak.service import Running, serving
from tests.small_disk import small_disk
from upsnet.contract import MODEL

pytestmark = pytest.mark.triton
QUESTIONS = [tensor_question(str(side), make_request(1, side, 64, seed=side)) for side in (32, 64, 96)]
ALLOWED = {"OK", "UNAVAILABLE"}  # how a request may end whose server has died


@pytest.fixture(scope="module")
def deployed(exported: Exported, triton_environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deploy(exported.model, exported.manifest_path, tmp_path_factory.mktemp("faults") / "repository")


@pytest.fixture(scope="module")
def running(deployed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One service, which survives what the tests do to it."""
    with serving(tmp_path_factory.mktemp("service") / "log", "--repository", deployed) as service:
        yield service


@pytest.fixture(scope="module")
def answers(running: Running) -> list[Answer]:
    return ask(running.address("grpc"))


def ask(address: str, tls: grpc.ChannelCredentials | None = None) -> list[Answer]:
    async def all_of_them() -> list[Answer]:
        async with Server(address, deadline=60, tls=tls) as server:
            return await ask_alone(server, QUESTIONS)

    return asyncio.run(all_of_them())


def refused(*options: str | Path) -> str:
    """The one line that `upsnet serve` ends with where it cannot start."""
    command = [sys.executable, "-m", "upsnet", "serve", "--grpc-port=0", "--metrics-port=0", *map(str, options)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert ended.returncode == 2, ended.stderr
    assert len(errors) == 1 and "Traceback" not in ended.stderr, ended.stderr
    return errors[0]


@pytest.mark.parametrize("victim", ["tritonserver", f"repository/{MODEL}/1"], ids=["tritonserver", "stub"])
def test_a_process_that_is_killed(
    running: Running, answers: list[Answer], victim: str, record_property: Callable[[str, object], None]
) -> None:
    pid = running.processes(victim)[0]
    found = asyncio.run(under_load(running, QUESTIONS, answers, lambda: os.kill(pid, signal.SIGKILL)))
    record_property("recovered_seconds", round(found.recovered, 2))
    print(
        f"{victim} killed: well again after {found.recovered:.1f} s; {dict(found.ended)}, slowest {found.slowest:.1f} s"
    )
    assert set(found.ended) <= ALLOWED
    assert found.ended["OK"]


def test_a_model_file_that_is_damaged_while_it_is_served(
    running: Running, answers: list[Answer], deployed: Path, tmp_path: Path
) -> None:
    """The service has a copy, from which it also restarts; only a new service sees the damage, and says so."""
    model = deployed / MODEL / "1/model.onnx"
    whole = model.read_bytes()
    model.write_bytes(whole[: len(whole) // 2])
    try:
        assert ask(running.address("grpc")) == answers
        pid = running.processes("tritonserver")[0]
        found = asyncio.run(under_load(running, QUESTIONS, answers, lambda: os.kill(pid, signal.SIGKILL)))
        assert set(found.ended) <= ALLOWED
        assert f"{model} is damaged" in refused("--repository", deployed)
    finally:
        model.write_bytes(whole)


def test_two_services_on_one_repository(
    running: Running, answers: list[Answer], deployed: Path, tmp_path: Path
) -> None:
    with serving(tmp_path / "log", "--repository", deployed) as second:
        assert ask(second.address("grpc")) == answers == ask(running.address("grpc"))
        assert second.stop() == 0
    assert ask(running.address("grpc")) == answers
    assert running.health()["state"] == "ready"


def test_a_port_that_is_taken(running: Running, deployed: Path) -> None:
    port = running.ports["grpc"]
    assert str(port) in refused("--repository", deployed, "--grpc-port", str(port))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        assert str(taken) in refused("--repository", deployed, "--metrics-port", str(taken))


def test_a_disk_that_is_full_at_the_start(deployed: Path, tmp_path: Path) -> None:
    before = set(os.listdir("/dev/shm"))
    with small_disk(4096):
        line = refused("--repository", deployed)
    assert "too large" in line.lower() or "cannot be written" in line
    assert set(os.listdir("/dev/shm")) <= before


def test_a_disk_that_is_full_under_the_access_log(deployed: Path, answers: list[Answer], tmp_path: Path) -> None:
    """What cannot be logged is answered all the same; stopped under load, the service ends without a fault."""
    with serving(tmp_path / "log", "--repository", deployed, "--access-log", "/dev/full") as service:
        for _ in range(3):
            assert ask(service.address("grpc")) == answers
        assert service.health()["state"] == "ready"
        assert asyncio.run(stop_under_load(service, answers)) == 0
        assert "Traceback" not in service.log.read_text()


async def stop_under_load(service: Running, answers: list[Answer]) -> int:
    """SIGTERM while four callers ask; what was accepted is answered, the rest is refused, and nothing hangs."""
    ended: list[str] = []

    async def call(server: Server, number: int) -> None:
        while "UNAVAILABLE" not in ended:
            try:
                assert await server.ask(QUESTIONS[number % 3].message) == answers[number % 3]
                ended.append("OK")
            except grpc.aio.AioRpcError as error:
                ended.append(error.code().name)

    async with asyncio.timeout(60), Server(service.address("grpc"), deadline=60) as server:
        async with asyncio.TaskGroup() as tasks:
            for number in range(4):
                tasks.create_task(call(server, number))
            while len(ended) < 20:
                await asyncio.sleep(0.02)
            service.process.send_signal(signal.SIGTERM)
        status = await asyncio.to_thread(service.process.wait, 60)
    assert set(ended) == ALLOWED
    return status


def test_a_wrong_certificate(deployed: Path, answers: list[Answer], tmp_path: Path) -> None:
    """Whoever trusts another authority gets no answer; the others do, before and after."""
    ours, other = trustme.CA(), trustme.CA()
    certificate = ours.issue_cert("localhost", "127.0.0.1")
    key, cert, wrong_key = tmp_path / "key.pem", tmp_path / "cert.pem", tmp_path / "wrong.pem"
    certificate.private_key_pem.write_to_path(key)
    certificate.cert_chain_pems[0].write_to_path(cert)
    other.issue_cert("localhost").private_key_pem.write_to_path(wrong_key)
    assert str(wrong_key) in refused("--repository", deployed, "--tls-cert", cert, "--tls-key", wrong_key)
    trusted, not_trusted = (grpc.ssl_channel_credentials(each.cert_pem.bytes()) for each in (ours, other))
    with serving(tmp_path / "log", "--repository", deployed, "--tls-cert", cert, "--tls-key", key) as service:
        address = service.address("grpc")
        assert ask(address, trusted) == answers
        for credentials in (not_trusted, None):
            with pytest.raises(Exception, match="refuses"):
                ask(address, credentials)
        assert ask(address, trusted) == answers


def test_nothing_is_left_of_a_service_that_was_killed(deployed: Path, tmp_path: Path) -> None:
    """kill -9 of the service itself: its Triton ends with it, and its folder and regions go."""
    before = set(os.listdir("/dev/shm"))
    with serving(tmp_path / "log", "--repository", deployed) as service:
        others = [pid for pid in service.processes("") if pid != service.process.pid]
        service.process.kill()
        service.process.wait()
        for _ in range(600):
            if not any(_alive(pid) for pid in others) and set(os.listdir("/dev/shm")) <= before:
                break
            time.sleep(0.05)
    assert not [pid for pid in others if _alive(pid)]
    assert set(os.listdir("/dev/shm")) <= before


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
