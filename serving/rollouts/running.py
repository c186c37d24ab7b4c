"""A service that runs the versions of a repository, and what it says of them (/health/versions)."""

from __future__ import annotations

import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from serving.backend import Role, State
from serving.rollouts.record import Record
from serving.server import TritonServer
from upsnet.errors import InputError, ServerError
from upsnet.runtimes.tls import Tls
from upsnet.runtimes.triton import TritonPredictor

HEALTH = "127.0.0.1:8002"  # of `make serve`
SECONDS = 5.0  # for an answer
MOST_BYTES = 1 << 20
FOLLOWS = 10.0  # seconds in which a service has taken up a candidate, or never does
START = 180.0  # seconds for a candidate's start
WATCH_EVERY = 0.5  # seconds


class RunningVersion(BaseModel):
    """A version that runs."""

    role: Role
    state: State
    reasons: list[str] = []
    restarts: int = 0
    model_sha256: str = ""


class Running(BaseModel):
    """A service and its versions at one moment."""

    rollouts: str  # the id of the record that it follows
    serving: int
    ports: dict[str, int]
    tls: bool = False
    versions: dict[int, RunningVersion]
    failed: dict[int, str] = {}  # why a version does not run that should
    canary: dict[str, Any] | None = None  # `Figures` of the last one


def read_page(health: str, path: str, seconds: float = SECONDS) -> bytes:
    """What the operators' port at host:port has under a path; no proxy is asked. OSError where it does not come."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{health}{path}", timeout=seconds) as answer:
        return answer.read(MOST_BYTES)


def ask_service(health: str, seconds: float = SECONDS) -> Running | None:
    """The one whose operators' port is at `health`, host:port; None where none answers there that knows versions."""
    try:
        return Running.model_validate_json(read_page(health, "/health/versions", seconds))
    except (OSError, ValueError, ValidationError):
        return None


class Containers(NamedTuple):
    """The vendor's containers, each with one version: host:port of their gRPC. They have no operators' port."""

    serving: str
    candidate: str


class Service(NamedTuple):
    """What runs the versions."""

    urls: Mapping[int, str]  # of the gRPC of the version in service, and of the candidate
    health: str  # host:port of its operators' port; empty: Containers
    private: bool
    tls: Tls | None = None

    def told(self) -> Running:
        found = ask_service(self.health)
        if found is None:
            raise ServerError(f"the service at {self.health} does not tell of its versions any more", "UNAVAILABLE")
        return found


@contextmanager
def open_service(
    repository: Path, record: Record, health: str, tls: Tls | None, containers: Containers | None = None
) -> Iterator[Service]:
    """InputError where one of the containers does not serve the version that it should."""
    assert record.candidate is not None
    versions = record.serving, record.candidate
    if containers is not None:
        urls = dict(zip(versions, containers, strict=True))
        for version, url in urls.items():
            _check_container(repository, record, version, url, tls)
        yield Service(urls, "", False, tls)
        return
    told = _following(health, record)
    if told is not None and told.tls and tls is None:
        say(f"the service at {health} wants TLS, and no --tls-ca was given: the gate has a private server")
        told = None
    if told is not None:
        yield Service(dict.fromkeys(versions, f"{health.rpartition(':')[0]}:{told.ports['grpc']}"), health, False, tls)
        return
    with TritonServer(repository, start_timeout=START) as server:
        yield Service(dict.fromkeys(versions, server.url), f"{server.host}:{server.ports['metrics']}", True)


def _check_container(repository: Path, record: Record, version: int, url: str, tls: Tls | None) -> None:
    try:
        predictor = TritonPredictor(url, timeout=SECONDS, tls=tls, version=version)
    except ServerError as error:
        if error.status != "NOT_FOUND":
            raise
        role = "the candidate" if version == record.candidate else "in service"
        raise InputError(
            f"the container at {url} does not run version {version} of {repository}, which is {role}: it serves "
            "what was there when it started; restart it, or give another address"
        ) from error
    with closing(predictor) as opened:
        if opened.manifest.onnx_sha256 != record.arrival(version).digests.get("model.onnx"):
            raise InputError(f"the container at {url} serves another model than version {version} of {repository}")


def _following(health: str, record: Record) -> Running | None:
    """The service there, where it is this repository's and runs or has given up the candidate, within FOLLOWS."""
    end = time.monotonic() + FOLLOWS
    while True:
        told = ask_service(health)
        if told is None or told.rollouts not in ("", record.id):  # "": it has not seen that there are roll-outs now
            return None
        known = {*told.versions, *told.failed}
        if told.rollouts and {record.serving, record.candidate} <= known:
            return told
        if time.monotonic() > end:
            if told.rollouts:
                say(f"the service at {health} runs no candidate: the gate has a private server")
            return None
        time.sleep(0.2)


def wait_for(
    service: Service, candidate: int, check: Callable[[], None] = lambda: None
) -> tuple[RunningVersion | None, list[str]]:
    """The candidate, ready, or why it is not. A container has been asked when the service was opened.

    check: raises where there is nothing to wait for any more.
    """
    if not service.health:
        return RunningVersion(role=Role.CANDIDATE, state=State.READY), []
    end = time.monotonic() + START
    while True:
        check()
        told = service.told()
        if (why := told.failed.get(candidate)) is not None:
            return None, [f"version {candidate} does not start: {why}"]
        found = told.versions.get(candidate)
        if found is not None and found.state == State.READY:
            return found, []
        if time.monotonic() > end:
            why = "; ".join(found.reasons) if found else "the service does not run it"
            return None, [f"version {candidate} is not ready after {START:g} s: {why}"]
        time.sleep(0.2)


@contextmanager
def watched(service: Service, candidate: int) -> Iterator[list[str]]:
    """Takes down why the candidate is not ready, whenever it is not: it has forgotten that when it is again."""
    said: list[str] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(WATCH_EVERY):
            told = ask_service(service.health)
            found = None if told is None else told.versions.get(candidate)
            said.extend(each for each in (found.reasons if found else ()) if each not in said)

    thread = threading.Thread(target=watch, daemon=True)
    if service.health:
        thread.start()
    try:
        yield said
    finally:
        stop.set()
        if service.health:
            thread.join()


def restarted(service: Service, candidate: int, before: RunningVersion, said: Sequence[str]) -> list[str]:
    """What has become of the candidate's server since `before`: one line, or none. said: by `watched`."""
    if not service.health:  # nobody tells; requests that failed meanwhile do
        return []
    told = service.told()
    if (why := told.failed.get(candidate)) is not None:
        return [f"version {candidate} does not run any more: {why}"]
    found = told.versions.get(candidate)
    if found is not None and found.restarts == before.restarts and found.state == State.READY:
        return []
    why = "; ".join(dict.fromkeys((*said, *(found.reasons if found else ())))) or "nobody knows why"
    return [f"the server of version {candidate} did not last: {why}"]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
