"""The real server: it heals, it ends, what is missing is said in one line, and nothing is left behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest

from serving.processes import arguments, members
from serving.repository import deploy
from serving.server import TritonServer
from serving.triton_process import litter
from tests.serving.conftest import Exported, make_request
from upsnet.errors import InputError
from upsnet.files import read_json, write_text
from upsnet.runtimes.triton import TritonPredictor

ROOT = Path(__file__).resolve().parents[2]

IDLE = (  # connections that are left open: the port, and what is said
    ("grpc", b""),
    ("grpc", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00"),
    ("http", b""),
    ("http", b"POST /v2/models/upsnet/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{"),
    ("metrics", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"),
)


@pytest.fixture
def repository(exported: Exported, tmp_path: Path) -> Path:
    """Of the tensors' model alone, in one process: many servers are started here."""
    repository = deploy(exported.model, exported.manifest_path, tmp_path / "repository")
    shutil.rmtree(repository / "upsnet_photo")
    config = repository / "upsnet/configs/cpu.pbtxt"
    write_text(config, config.read_text().replace("count: 2", "count: 1"))
    return repository


def wait_until(so: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)


def stubs(server: int) -> list[int]:
    return [pid for pid in members(server) if pid != server]


def regions(scratch: str) -> list[str]:
    return [path.name for path in Path("/dev/shm").glob(f"{scratch}-*")]


def scratch_of(server: int) -> str:
    """The name of the folder that a Triton server lives in, and of its regions."""
    (flag,) = (flag for flag in arguments(server) if flag.startswith("--model-repository="))
    return Path(flag.partition("=")[2]).parent.name


@contextmanager
def serving(repository: Path, environment: Path, folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`upsnet serve` as a shell starts it, with `folder` for its temporary files. Its first line has been read."""
    ports = ["--grpc-port=0", "--metrics-port=0"]
    command = [sys.executable, "-m", "upsnet", "serve", f"--repository={repository}", *ports, *options]
    variables = os.environ | {"UPSNET_TRITON_ENV": str(environment), "TMPDIR": str(folder)}
    with subprocess.Popen(
        command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        yield process


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def port(line: str, name: str = "grpc") -> int:
    found = re.search(rf"{name} (\d+)", line)
    assert found is not None, line
    return int(found[1])


def triton_of(process: subprocess.Popen[str]) -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (server,) = (int(child) for child in children if arguments(int(child))[0].endswith("tritonserver"))
    return server


@pytest.mark.triton
@pytest.mark.parametrize("victim", ["the model's process", "the server"])
def test_what_is_killed_comes_back(exported: Exported, repository: Path, triton_environment: Path, victim: str) -> None:
    request = make_request(1, 64, 96)
    with TritonServer(repository, environment=triton_environment) as server:
        first = server.pid
        scratch, processes = scratch_of(first), len(members(first))
        held = len(regions(scratch))
        assert processes >= 2 and held >= 1 and server.state["restarts"] == 0
        predictor = TritonPredictor(server.url)
        os.kill(first if victim == "the server" else stubs(first)[0], signal.SIGKILL)
        wait_until(lambda: server.state["restarts"] == 1 and server.state["state"] == "ready")
        np.testing.assert_array_equal(predictor.predict(request).panoptic, exported.predict(request).panoptic)
        predictor.close()
        assert server.pid != first and not members(first)
        assert len(members(server.pid)) == processes and len(regions(scratch)) == held
        last = server.pid
    assert not members(last) and not regions(scratch)
    with pytest.raises(InputError, match=r"not running"):
        _ = server.pid


@pytest.mark.triton
def test_ends_within_ten_seconds_and_leaves_nothing(repository: Path, tmp_path: Path, triton_environment: Path) -> None:
    """However it is told to end, and with idle connections and half a request open."""
    folders = [tmp_path / str(number) for number in range(4)]
    endings = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL]
    with ExitStack() as stack:
        processes = []
        for folder in folders:
            folder.mkdir()
            processes.append(stack.enter_context(serving(repository, triton_environment, folder, "--http-port=0")))
        lines = [first_line(process) for process in processes]
        servers = [triton_of(process) for process in processes]
        scratches = [scratch_of(server) for server in servers]
        for line in lines:
            for name, words in IDLE:
                idle = stack.enter_context(socket.create_connection(("127.0.0.1", port(line, name))))
                idle.sendall(words)
        for process, ending in zip(processes, endings, strict=True):
            process.send_signal(ending)
        for process in processes:
            process.wait(10)
        rest = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0, -signal.SIGKILL]
    assert [stdout for stdout, _ in rest] == ["Triton has stopped.\n"] * 3 + [""]
    for _, stderr in rest[:3]:
        assert "\ndraining: requests under way have 8 s; a second signal ends them at once\n" in stderr
    wait_until(lambda: not any(members(server) for server in servers))  # the killed one's: nobody was left to wait
    wait_until(lambda: not any(regions(scratch) for scratch in scratches))
    wait_until(lambda: not any(list(folder.iterdir()) for folder in folders))


def make_slow(repository: Path, seconds: float) -> None:
    """From now on a model takes so long for images of a height of 96."""
    model = repository / "upsnet/1/model.py"
    inner = model.read_text().replace("class TritonPythonModel", "class Inner")
    model.write_text(
        f"""{inner}

class TritonPythonModel(Inner):
    def execute(self, requests):
        import time
        for request in requests:
            if pb_utils.get_input_tensor_by_name(request, "images").as_numpy().shape[1] == 96:
                time.sleep({seconds})
        return super().execute(requests)
"""
    )


@pytest.mark.triton
def test_what_was_accepted_is_answered_before_the_end(
    exported: Exported, repository: Path, triton_environment: Path, tmp_path: Path
) -> None:
    make_slow(repository, 2)
    request = make_request(1, 96, 64)
    with serving(repository, triton_environment, tmp_path) as process, ThreadPoolExecutor(1) as pool:
        line = first_line(process)
        predictor = TritonPredictor(f"127.0.0.1:{port(line)}")
        answer = pool.submit(predictor.predict, request)
        wait_until(lambda: is_under_way(line))
        process.send_signal(signal.SIGTERM)
        np.testing.assert_array_equal(answer.result(30).panoptic, exported.predict(request).panoptic)
        assert process.wait(10) == 0
        predictor.close()


@pytest.mark.triton
def test_a_second_signal_waits_for_nothing(repository: Path, triton_environment: Path, tmp_path: Path) -> None:
    make_slow(repository, 600)
    with (
        serving(repository, triton_environment, tmp_path, "--drain=500") as process,
        ThreadPoolExecutor(1) as pool,
    ):
        line = first_line(process)
        predictor = TritonPredictor(f"127.0.0.1:{port(line)}", retries=0)
        answer = pool.submit(predictor.predict, make_request(1, 96, 64))
        wait_until(lambda: is_under_way(line))
        assert process.stderr is not None
        process.send_signal(signal.SIGTERM)
        assert any(line.startswith("draining: requests under way have 500 s") for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert not re.search("Traceback|Unclosed|never awaited", process.stderr.read())
        with pytest.raises(InputError):
            answer.result(30)
        predictor.close()
    assert not list(tmp_path.glob("upsnet-triton-*"))


def is_under_way(line: str) -> bool:
    """A request is with Triton, as the metrics of the service with this ready line say."""
    with urlopen(f"http://127.0.0.1:{port(line, 'metrics')}/metrics", timeout=10) as page:
        return b"\nupsnet_requests_in_flight 1.0\n" in page.read()


@pytest.mark.triton
def test_ends_with_whoever_started_it(repository: Path, triton_environment: Path, tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from serving.server import TritonServer
server = TritonServer(Path({str(repository)!r}), environment=Path({str(triton_environment)!r}))
server.start()
print(server.pid, flush=True)
input()
"""
    variables = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-P", "-c", script],
        env=variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        server = int(first_line(owner))
        scratch = scratch_of(server)
        owner.kill()
    wait_until(lambda: not members(server) and not regions(scratch))
    wait_until(lambda: not list(tmp_path.glob("upsnet-triton-*")))


@pytest.mark.triton
def test_what_is_served_does_not_change(
    exported: Exported, repository: Path, triton_environment: Path, tmp_path: Path
) -> None:
    """Two servers on one repository, over which another model is deployed, and then cut off."""
    request = make_request(2, 64, 96)
    other = tmp_path / "other.json"
    exported.manifest.model_copy(update={"name": "other"}).save(other)
    with TritonServer(repository, environment=triton_environment) as one:
        deploy(exported.model, other, repository)
        with TritonServer(repository, environment=triton_environment) as two:
            os.truncate(repository / "upsnet/1/model.onnx", 100)
            os.kill(one.pid, signal.SIGKILL)  # its next start is of the same model
            wait_until(lambda: one.state["restarts"] == 1 and one.state["state"] == "ready")
            for server, name in ((one, exported.manifest.name), (two, "other")):
                predictor = TritonPredictor(server.url)
                assert predictor.manifest.name == name
                np.testing.assert_array_equal(predictor.predict(request).panoptic, exported.predict(request).panoptic)
                predictor.close()


@pytest.mark.triton
def test_paths_with_spaces_and_letters_outside_ascii(
    repository: Path, triton_environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "é and $a space"
    (place / "tmp").mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(place / "tmp"))
    (place / "environment").symlink_to(triton_environment)
    repository = shutil.copytree(repository, place / "repository")
    with TritonServer(repository, environment=place / "environment", log=place / "log") as server:
        server.check()
    assert (place / "log").read_bytes()


def damage_model(repository: Path) -> None:
    (repository / "upsnet/1/model.onnx").write_bytes(b"not a model")
    for path in (repository / "upsnet/1/manifest.json", *repository.rglob("cpu.pbtxt")):  # nobody says what it was
        write_text(path, re.sub(r"\b[0-9a-f]{64}\b", "", path.read_text()))


@pytest.mark.triton
def test_first_start_that_fails_is_one_line_and_leaves_nothing(
    repository: Path, triton_environment: Path, tmp_path: Path
) -> None:
    damage_model(repository)
    with serving(repository, triton_environment, tmp_path) as process:
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (2, "")
    said = (
        r"error: the Triton server did not start: Triton has ended; its log says: .* Load model from .*onnx failed.*\n"
    )
    assert re.fullmatch(said, stderr)
    assert str(repository) in stderr  # and not the copy
    assert not list(tmp_path.glob("upsnet-triton-*"))


@pytest.mark.triton
def test_start_that_hangs_is_ended(repository: Path, triton_environment: Path, tmp_path: Path) -> None:
    (repository / "upsnet/1/model.py").write_text("import time\ntime.sleep(60)\n")
    server = TritonServer(repository, environment=triton_environment, log=tmp_path / "log", start_timeout=1)
    with pytest.raises(InputError, match=r"^the Triton server did not start: no answer within 1 s; its log says: "):
        server.start()
    assert (tmp_path / "log").read_text()


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
def test_leaves_the_repository_as_it_was(server: TritonServer, exported: Exported, tmp_path: Path) -> None:
    fresh = deploy(exported.model, exported.manifest_path, tmp_path / "fresh")
    found, expected = ({path.relative_to(top) for path in top.rglob("*")} for top in (server.repository, fresh))
    assert found == expected


def ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as attempt:
            attempt.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.triton
@pytest.mark.skipif(not ipv6(), reason="this machine has no ::1")
def test_ipv6(repository: Path, triton_environment: Path) -> None:
    with TritonServer(repository, environment=triton_environment, host="::1") as server:
        assert server.url.startswith("[::1]:")
        server.check()


@pytest.mark.triton
def test_what_others_find_of_it(exported: Exported, triton_environment: Path, tmp_path: Path) -> None:
    """Regions and a folder in /tmp for this user alone; also where the keeper is killed, and stdout closed."""
    repository = deploy(exported.model, exported.manifest_path, tmp_path / "repository")
    before = litter()
    state = tmp_path / "state.json"
    command = [sys.executable, "-m", "upsnet", "serve", f"--repository={repository}", f"--state={state}"]
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *command, "--grpc-port=0", "--metrics-port=0"]
    variables = os.environ | {"UPSNET_TRITON_ENV": str(triton_environment), "TMPDIR": str(tmp_path)}

    def restarts_and_is_ready(times: int) -> bool:
        told = read_json(state) if state.is_file() else {}
        return (told.get("state"), told.get("restarts")) == ("ready", times)

    def look() -> None:
        modes = [path.stat().st_mode & 0o777 for path in Path("/dev/shm").glob(f"{scratch}-*")]
        assert len(modes) >= 4 and set(modes) == {0o600}
        for folder in litter() - before:  # one for each server that starts just now
            with suppress(FileNotFoundError):
                assert folder.stat().st_mode & 0o777 == 0o700 and not list(folder.iterdir())

    with subprocess.Popen(command, cwd=ROOT, env=variables, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: restarts_and_is_ready(0))
        told = read_json(state)
        assert told["pid"] == process.pid and told["triton_pid"] == triton_of(process)
        scratch = scratch_of(told["triton_pid"])
        look()
        everybody = (int(folder.name) for folder in Path("/proc").glob("[0-9]*"))
        (keeper,) = (pid for pid in everybody if {"/bin/sh", str(tmp_path / scratch)} <= set(arguments(pid)))
        os.kill(keeper, signal.SIGKILL)
        os.kill(told["triton_pid"], signal.SIGKILL)
        wait_until(lambda: restarts_and_is_ready(1))
        look()
        process.terminate()
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 0 and "Traceback" not in stderr
    assert "\nready: the models answer again\n" in stderr
    assert not regions(scratch) and not list(tmp_path.glob("upsnet-triton-*"))


@pytest.mark.triton
def test_files_that_are_no_use(repository: Path, triton_environment: Path, tmp_path: Path) -> None:
    """Each is one line with a cure, and nothing waits for the reader of a pipe."""
    pipe, file = tmp_path / "pipe", tmp_path / "file"
    os.mkfifo(pipe)
    file.touch()
    cases = (
        ("log", pipe),
        ("log", Path("/dev/full")),
        ("access-log", pipe),
        ("access-log", tmp_path),
        ("state", tmp_path),
        ("state", Path("/dev/full")),
        ("state", file / "x"),
    )
    with ExitStack() as stack:
        processes = [
            stack.enter_context(serving(repository, triton_environment, tmp_path, f"--{option}={path}"))
            for option, path in cases
        ]
        for (option, path), process in zip(cases, processes, strict=True):
            stdout, stderr = process.communicate(timeout=60)
            assert (process.returncode, stdout) == (2, ""), (option, path)
            assert re.fullmatch(rf"error: {path}: .*; give --{option} (a|another) file.*\n", stderr), stderr


@pytest.mark.triton
def test_log_that_cannot_be_written(repository: Path, triton_environment: Path, tmp_path: Path) -> None:
    server = TritonServer(repository, environment=triton_environment, log=tmp_path)
    with pytest.raises(InputError, match=f"^{tmp_path}: cannot be written: Is a directory; give --log another file$"):
        server.start()
