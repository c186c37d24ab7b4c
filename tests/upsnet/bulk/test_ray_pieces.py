"""What of `upsnet predict --ray` needs no cluster."""

from __future__ import annotations

import signal
import socket
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.browser.colours import scene, write_network
from tests.upsnet.bulk.two_nodes import HERE, ROOT
from upsnet.bulk import ray_cluster
from upsnet.bulk.photo_list import Entry, PhotoList
from upsnet.bulk.plan import Plan, describe_model, make_plan
from upsnet.bulk.ray_cluster import Actors, absolute, connected
from upsnet.bulk.trial import trial
from upsnet.command_line.predict import main
from upsnet.errors import InputError
from upsnet.runtimes.options import RuntimeOptions
from upsnet.runtimes.tls import Tls


def entry(path: Path) -> Entry:
    return Entry(1, path.stem, path.name, str(path))


def test_a_trial_finds_every_photo_that_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{HERE / 'deadly'}")
    names = ["deadly-1.png", "good.png", "bad.png", "deadly-2.png", "good-2.png"]
    for name in names:
        (tmp_path / name).write_bytes(b"" if name == "bad.png" else scene(32, 32))
    found = trial([entry(tmp_path / name) for name in names])
    assert found == {
        str(tmp_path / name): f"{name}: reading it kills the process (SIGSEGV)" for name in (names[0], names[3])
    }
    assert trial([]) == {}


def test_files_are_named_as_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = absolute(RuntimeOptions("runs/demo", model="m.onnx", tls=Tls("ca.pem")))
    assert here == RuntimeOptions(
        f"{tmp_path}/runs/demo", model=f"{tmp_path}/m.onnx", tls=Tls(f"{tmp_path}/ca.pem", None, None)
    )
    server = RuntimeOptions("grpcs://host:8001", tls=True)
    assert absolute(server) == server._replace(tls=Tls())


@pytest.mark.parametrize("address", ["nonsense", "ray://head:10001", "http://head:8265", "head:", ":1", "head:port"])
def test_an_address_that_is_none(address: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(InputError, match=r"give auto, local, or host:port .* `ray job submit"), connected(address):
        pass


@pytest.mark.parametrize("address", ["127.0.0.1:9", "127.0.0.1:99999"])
def test_nobody_there(address: str) -> None:
    pytest.importorskip("ray")
    with (
        pytest.raises(InputError, match=rf"--ray {address}: no cluster there .*`ray start --head`"),
        connected(address),
    ):
        pass


@pytest.mark.parametrize("words", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
def test_somebody_else_there(words: bytes) -> None:
    """The dashboard, for one: Ray itself would ask it for minutes."""
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(words)

        threading.Thread(target=answer, daemon=True).start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with (
            pytest.raises(InputError, match=f"--ray {address}: what listens there is no head of a cluster; .* 6379"),
            connected(address),
        ):
            pass


def test_sigterm_while_ray_connects_ends_with_143() -> None:
    with pytest.raises(SystemExit) as end, ray_cluster._handlers_kept():
        sys.exit(signal.SIGTERM)  # as Ray's handler
    assert end.value.code == 143


def test_options_of_actors_are_for_a_cluster(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--actor-cpus is for a Ray cluster; give --ray"):
        main(photos_from="list.txt", out=str(tmp_path / "out"), actor_cpus=2)
    with pytest.raises(InputError, match="--actors is for photos of a list; give --photos-from"):
        main(photos=["1.jpg"], out=str(tmp_path / "out"), actors=2)


def desk(photos: PhotoList, attempt: int) -> Any:
    """As an actor sees the real one."""
    return SimpleNamespace(begin=SimpleNamespace(remote=lambda number: (attempt, attempt > 1, photos.block(number))))


@pytest.fixture
def begun(tmp_path: Path) -> tuple[PhotoList, Plan, RuntimeOptions]:
    (tmp_path / "1.png").write_bytes(scene(32, 32))
    (tmp_path / "list.txt").write_text("1.png\nnone.png\n")
    source = RuntimeOptions(model=write_network(tmp_path / "model.onnx"), threads=1)
    photos = PhotoList.scan(str(tmp_path / "list.txt"), 2)
    return photos, make_plan(photos, describe_model(source), "tar"), source


def test_an_actor_says_what_became_of_a_block(
    begun: tuple[PhotoList, Plan, RuntimeOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    from upsnet.bulk import on_ray

    monkeypatch.setattr(ray, "get", lambda reference: reference)
    photos, plan, source = begun

    def ask(attempt: int, source: RuntimeOptions = source) -> dict[str, object]:
        answer = on_ray.Actor(desk(photos, attempt), source, 1, plan, str(tmp_path / "out"))({"item": 0})
        return {key: value for key, value in answer.items() if value and key != "seconds"}

    assert ask(on_ray.ATTEMPTS + 1) == {"died": True}
    assert ask(1) == {"photos": 2, "left_out": 1}
    assert ask(1) == {}  # another process wrote it: it is not counted
    assert ask(2) == {"photos": 2, "left_out": 1}  # the actor that wrote it died before it could tell
    missing = ask(1, source._replace(model=tmp_path / "none.onnx"))
    assert missing.keys() == {"refused"} and f"{tmp_path}/none.onnx: no such file" in str(missing["refused"])
    assert str(missing["refused"]).startswith("node ")


def test_an_actors_fault_of_ours_keeps_its_traceback(
    begun: tuple[PhotoList, Plan, RuntimeOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    from upsnet.bulk import on_ray

    photos, plan, source = begun
    monkeypatch.setattr(ray, "get", lambda reference: {"this": 1}["what"])
    answer = on_ray.Actor(desk(photos, 1), source, 1, plan, str(tmp_path / "out"))({"item": 0})
    assert "KeyError: 'what'" in answer["trace"] and not answer["refused"]
    with pytest.raises(RuntimeError, match="KeyError"):
        raise on_ray._raised(answer)


def test_actors_are_as_many_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    from upsnet.bulk.ray_cluster import settled

    nodes = [{"Alive": True, "Resources": {"CPU": cpus, "GPU": gpus}} for cpus, gpus in [(8, 2), (7, 0), (0, 0)]]
    nodes.append({"Alive": False, "Resources": {"CPU": 99, "GPU": 9}})
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    cpu, gpu = RuntimeOptions(runtime="onnxruntime", model="m.onnx", device="cpu"), RuntimeOptions(engine="m.plan")
    assert settled(Actors(), cpu) == (15, 1, 0.0)
    assert settled(Actors(cpus=4), cpu) == (3, 4, 0.0)
    assert settled(Actors(), cpu._replace(device=None)) == (2, 1, 1.0)  # it can use a GPU, and there are some
    assert settled(Actors(cpus=1, gpus=0.5), gpu) == (4, 1, 0.5)
    assert settled(Actors(number=3, cpus=4), cpu) == (3, 4, 0.0)
    with pytest.raises(InputError, match=r"no node .* 9 CPUs and 0 GPUs for an actor \(most: 8 CPUs, 2 GPUs\)"):
        settled(Actors(cpus=9), cpu)
