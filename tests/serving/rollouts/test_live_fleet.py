"""Versions that come, serve, go and break under callers who never stop asking: not one of their requests fails."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serving.repository import TEMPLATE, Parts, deploy
from serving.rollouts import steps
from serving.rollouts.record import read_record
from serving.server import TritonServer
from tests.serving.conftest import Exported, make_request
from tests.serving.ops.callers import beside
from upsnet.contract import MODEL

pytestmark = pytest.mark.triton
GUARD = 90.0  # seconds until something counts as never happening
HANG = 6  # --hang-timeout
LIMIT = 3 << 29  # --memory-limit: three versions of the stand-in have room
BROKEN = '\n\nraise RuntimeError("this version does not want to")\n'
GREEDY = """

class TritonPythonModel(TritonPythonModel):
    def initialize(self, args):
        super().initialize(args)
        self.hoard = np.ones(1 << 27)  # 1 GiB, of each of the two instances
"""


class World:
    """A service, and four callers who name no version."""

    def __init__(self, server: TritonServer, parts: Parts) -> None:
        self.server, self.parts, self.repository = server, parts, server.repository
        self.answers: Counter[str] = Counter()  # by version
        self.failures: list[str] = []

    @property
    def told(self) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.server.ports['metrics']}/health/versions") as answer:
            return json.load(answer)

    def states(self) -> dict[int, tuple[str, str]]:
        return {int(number): (each["role"], each["state"]) for number, each in self.told["versions"].items()}

    def pid(self, version: int) -> int:
        """Of that version's Triton."""
        return self.server.state["versions"][str(version)]["triton_pid"]

    def until(self, so: Callable[[], object]) -> float:
        """Seconds that it took."""
        begun = time.monotonic()
        while not so():
            assert time.monotonic() < begun + GUARD, (self.told, self.failures)
            time.sleep(0.05)
        return time.monotonic() - begun

    def until_states(self, **states: str) -> float:
        wanted = {int(name[1:]): (role, "ready") for name, role in states.items()}
        return self.until(lambda: self.states() == wanted)

    def until_answers(self, version: int, count: int = 10) -> float:
        """Until so many more have come from it."""
        before = self.answers[str(version)]
        return self.until(lambda: self.answers[str(version)] >= before + count)

    def stage(self, code: str = "") -> int:
        """A candidate, with that code at the end of the model `upsnet`. Its number."""
        with patched_template(self.repository.parent, code):
            number = steps.stage(self.repository, self.parts).candidate
        assert number is not None
        return number

    def promote(self) -> None:
        steps.promote(self.repository, read_record(self.repository), {}, 0.0)

    def discard(self) -> None:
        steps.discard(self.repository)
        self.until(lambda: len(self.states()) == 1)

    @contextmanager
    def callers(self, allowed: tuple[str, ...] = ()) -> Iterator[None]:
        """They ask until the end, and each is answered, but for what may happen to a request."""
        self.failures.clear()
        with beside(*(partial(self._call, seed) for seed in range(4))):
            yield
        assert [each for each in self.failures if each.partition(":")[0] not in allowed] == []

    def _call(self, seed: int, stop: threading.Event) -> None:
        message = question(seed)
        with grpc.insecure_channel(self.server.url) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            while not stop.is_set():
                try:
                    self.answers[stub.ModelInfer(message, timeout=60).model_version] += 1
                except grpc.RpcError as error:
                    self.failures.append(f"{error.code().name}: {error.details()}")
                stop.wait(0.01)


def question(seed: int) -> service_pb2.ModelInferRequest:
    message = service_pb2.ModelInferRequest(model_name=MODEL)
    batch = make_request(1, 32 * (1 + seed % 3), 64, seed=seed)
    for name, array in batch._asdict().items():
        array = array[:, None] if name == "scales" else array
        kind = {"images": "UINT8", "sizes": "INT32", "scales": "FP32"}[name]
        message.inputs.add(name=name, datatype=kind, shape=array.shape)
        message.raw_input_contents.append(array.tobytes())
    return message


@contextmanager
def patched_template(folder: Path, code: str) -> Iterator[None]:
    """What is staged inside runs that code too."""
    place = folder / f"template-{time.monotonic_ns()}"
    shutil.copytree(TEMPLATE, place, ignore=shutil.ignore_patterns("__pycache__"))
    file = place / MODEL / "1/model.py"
    file.write_text(file.read_text() + code)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serving.repository.TEMPLATE", place)
        yield


@pytest.fixture(scope="module")
def repository(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deploy(exported.model, exported.manifest_path, tmp_path_factory.mktemp("fleet") / "repository")


@pytest.fixture(scope="module")
def world(repository: Path, parts: Parts, triton_environment: Path) -> Iterator[World]:
    options = (f"--hang-timeout={HANG}", f"--memory-limit={LIMIT}")
    with TritonServer(repository, environment=triton_environment, options=options) as server:
        yield World(server, parts)


def test_stage_promote_rollback(world: World, record_property: Callable[[str, object], None]) -> None:
    first = world.told["serving"]
    with world.callers():
        world.until_answers(first)
        second = world.stage()
        record_property("staged_seconds", world.until_states(**{f"_{first}": "serving", f"_{second}": "candidate"}))
        assert set(world.answers) == {str(first)}  # a candidate has no callers who did not name it
        world.promote()
        record_property("promoted_seconds", world.until_answers(second))
        world.until_states(**{f"_{first}": "standby", f"_{second}": "serving"})
        world.answers.clear()
        steps.rollback(world.repository)
        record_property("rolled_back_seconds", world.until_answers(first))
        world.until_states(**{f"_{first}": "serving"})
        world.answers.clear()
        world.until_answers(first, 20)
        assert set(world.answers) == {str(first)}


@pytest.mark.parametrize(
    ("code", "reason"),
    [(BROKEN, "this version does not want to"), (GREEDY, "MiB of memory")],
    ids=["does not start", "eats memory"],
)
def test_a_candidate_that_cannot_run(world: World, code: str, reason: str) -> None:
    restarts = world.server.state["restarts"]
    with world.callers():
        number = world.stage(code)
        world.until(lambda: str(number) in world.told["failed"])
        assert reason in world.told["failed"][str(number)]
        world.until_answers(world.told["serving"])
    assert world.server.state["restarts"] == restarts
    world.discard()


def test_whoever_dies_or_hangs_is_started_again(world: World) -> None:
    """Where the candidate does, its neighbour notices nothing. Where the version in service does, it is as without a
    candidate: what was with it may be asked again, what came later has waited."""
    serving = world.told["serving"]
    number = world.stage()
    states = {f"_{serving}": "serving", f"_{number}": "candidate"}
    world.until_states(**states)
    world.answers.clear()

    def break_it(version: int, what: signal.Signals) -> None:
        other = number if version == serving else serving
        kept, restarts = world.pid(other), world.told["versions"][str(version)]["restarts"]
        world.until_answers(serving)
        os.kill(world.pid(version), what)
        world.until(lambda: world.told["versions"][str(version)]["restarts"] == restarts + 1)
        world.until_states(**states)
        world.until_answers(serving)
        assert world.pid(other) == kept

    with world.callers():
        break_it(number, signal.SIGKILL)
        break_it(number, signal.SIGSTOP)
    with world.callers(allowed=("UNAVAILABLE",)):
        break_it(serving, signal.SIGKILL)
    assert set(world.answers) == {str(serving)}
    world.discard()


def test_the_service_is_killed_and_started_again(world: World, triton_environment: Path) -> None:
    """It serves what the record says, though another version did when it was killed."""
    number = world.stage()
    world.server._process.kill()  # type: ignore[union-attr]
    world.server.stop()
    world.promote()
    world.server.start()
    world.until_states(**{f"_{number}": "serving"})
    with world.callers():
        world.answers.clear()
        world.until_answers(number)
        steps.rollback(world.repository)  # the version before is started for it
        world.until(lambda: world.told["serving"] != number)
        world.until_answers(world.told["serving"])
