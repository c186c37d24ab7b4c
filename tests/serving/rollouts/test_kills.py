"""kill -9 at random moments of stage, promote and rollback, while a real service answers its callers."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import upsnet
from serving.repository import deploy
from serving.rollouts.record import Record, read_record
from serving.server import TritonServer
from tests.serving.conftest import Exported, make_request
from tests.serving.rollouts.conftest import check_truth
from upsnet.runtimes.triton import TritonPredictor

pytestmark = pytest.mark.triton
NOBODY = "127.0.0.1:9"  # nothing listens there: the commands do not wait
# The command as it is, but that it waits for a line after its imports, and says when it is over.
CHILD = """
import importlib, sys
from upsnet.command_line.command import make_app
main = importlib.import_module(f"serving.rollouts.commands.{sys.argv[1]}").main
print("ready", flush=True)
sys.stdin.readline()
make_app(main)(sys.argv[2:], standalone_mode=False)
print("done", flush=True)
sys.stdin.readline()
"""


class Callers:
    """Tensors and photos, one after the other from each caller, until the end. Nothing is tried twice."""

    def __init__(self, url: str, exported: Exported) -> None:
        self.answers: Counter[str] = Counter()
        self.errors: list[str] = []
        self._url, self._exported = url, exported
        self._stop = threading.Event()
        asks = (self._tensors, self._photos, self._tensors)
        self._threads = [threading.Thread(target=self._call, args=(ask,)) for ask in asks]

    @contextmanager
    def calling(self) -> Iterator[None]:
        for each in self._threads:
            each.start()
        try:
            yield
        finally:
            self._stop.set()
            for each in self._threads:
                each.join()

    def _call(self, ask: Callable[[], None]) -> None:
        try:
            ask()
        except Exception as error:
            self.errors.append(f"{ask.__name__}: {error!r}")

    def _tensors(self) -> None:
        """The versions are one network: each answer is the right one, whichever gives it."""
        request = make_request(1, 32, 64)
        right = self._exported.predict(request)
        predictor = TritonPredictor(self._url, retries=0)
        try:
            while not self._stop.wait(0.02):
                for one, other in zip(predictor.predict(request), right, strict=True):
                    np.testing.assert_array_equal(one, other)
                self.answers["tensors"] += 1
        finally:
            predictor.close()

    def _photos(self) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        with upsnet.Client(f"grpc://{self._url}", retries=0) as client:
            first = client.predict(pixels).result
            while not self._stop.wait(0.02):
                np.testing.assert_array_equal(client.predict(pixels).result.ids, first.ids)
                self.answers["photos"] += 1


class Command:
    """One that has been loaded and waits."""

    def __init__(self, name: str, repository: Path, *arguments: str) -> None:
        command = [sys.executable, "-c", CHILD, name, *arguments, "--repository", str(repository), "--health", NOBODY]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True)
        assert self._line() == "ready"

    def run(self, kill_after: float | None = None) -> float:
        """Seconds that it took; or kills it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        begun = time.monotonic()
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        if kill_after is not None:
            time.sleep(kill_after)
        else:
            said = []
            while (line := self._line()) != "done":
                said.append(line)
                assert self._process.poll() is None, said
        took = time.monotonic() - begun
        self._process.kill()
        self._process.communicate()
        return took

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def follows(server: TritonServer, repository: Path, seconds: float = 90) -> None:
    """Until the service serves what the record says, and has not another opinion of what the candidate is."""
    end = time.monotonic() + seconds
    while True:
        record, told = read_record(repository), versions(server)
        candidates = {int(number) for number, each in told["versions"].items() if each["role"] == "candidate"}
        if told["serving"] == record.serving and candidates == {record.candidate} - {None}:
            return
        assert time.monotonic() < end, (record.served, record.candidate, told)
        time.sleep(0.1)


def versions(server: TritonServer) -> Any:
    address = f"http://127.0.0.1:{server.ports['metrics']}/health/versions"
    with urllib.request.urlopen(address, timeout=10) as answer:
        return json.load(answer)


def is_one_step_at_most(before: Record, after: Record, action: str) -> bool:
    """What a killed command may have done: nothing, or its whole step. Whether it has."""
    if after == before:
        return False
    assert after.events[:-1] == before.events and after.step == before.step + 1
    event = after.events[-1]
    assert event.action == action
    wanted = {
        "stage": (before.served[-3:], before.highest + 1),
        "promote": ((*before.served, before.candidate), None),
        "rollback": (before.served[:-1], before.candidate),
    }
    assert (after.served, after.candidate) == wanted[action]
    assert event.version == (after.candidate if action == "stage" else after.serving)
    return True


@pytest.mark.parametrize("kills", [pytest.param(10, marks=pytest.mark.large)])
def test_kills_at_random_moments_under_load(
    kills: int, exported: Exported, engine: Path, triton_environment: Path, tmp_path: Path
) -> None:
    """The repository starts, one version serves, the history tells the truth, and no caller notices."""
    repository = deploy(exported.model, exported.manifest_path, tmp_path / "repository")
    chance = random.Random()
    arguments = {"stage": (str(engine),), "promote": ("--without-gate", "a test"), "rollback": ()}
    killed: Counter[str] = Counter()
    with TritonServer(repository, environment=triton_environment, options=("--standby=5",)) as server:
        callers = Callers(server.url, exported)
        with callers.calling():
            took = {name: Command(name, repository, *arguments[name]).run() for name in ("stage", "promote")}
            follows(server, repository)
            took["rollback"] = Command("rollback", repository).run()
            follows(server, repository)
            for number in range(kills):
                record = read_record(repository)
                name = "stage" if record.candidate is None else "promote"
                if record.previous is not None and number % 3 == 2:
                    name = "rollback"
                moment = chance.uniform(0, 1.2 * took[name])
                Command(name, repository, *arguments[name]).run(kill_after=moment)
                after = check_truth(repository)
                assert after is not None
                done = is_one_step_at_most(record, after, name)
                killed[f"{name}, {'after' if done else 'before'} its step"] += 1
                if not done:  # the same command goes through now, whatever is left
                    Command(name, repository, *arguments[name]).run()
                    assert is_one_step_at_most(record, read_record(repository), name)
                follows(server, repository)
        assert callers.errors == []
        assert min(callers.answers.values()) > 10, callers.answers
        serving = read_record(repository).serving
        assert versions(server)["serving"] == serving
    with TritonServer(repository, environment=triton_environment) as server:
        assert versions(server)["serving"] == serving
    print(f"killed: {dict(killed)}; answers: {dict(callers.answers)}; none failed")
