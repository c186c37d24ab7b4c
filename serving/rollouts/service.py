"""Whether a running `upsnet serve` has taken up a step: its operators' port tells which versions it runs."""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from collections.abc import Callable
from typing import NamedTuple

from pydantic import BaseModel, ValidationError
from tqdm import tqdm

from serving.rollouts.record import Record
from upsnet.errors import InputError

HEALTH = "127.0.0.1:8002"
HEALTH_SECONDS = 3.0  # for an answer
LOOK_SECONDS = 0.2
MOST_BYTES = 1 << 20


class Version(BaseModel):
    """One that runs."""

    role: str  # serving, candidate, standby
    state: str  # starting, ready, degraded, ...
    reasons: list[str] = []  # why it is not ready


class Service(BaseModel):
    """What a service tells of its versions."""

    rollouts: str  # the id of the record that it follows
    serving: int
    versions: dict[int, Version]
    failed: dict[int, str] = {}  # those that should run and do not: why


class Outcome(NamedTuple):
    """What came of waiting."""

    followed: bool | None  # None: no service of this repository is there
    told: str  # a line for people


def ask_service(health: str, record: Record) -> Service | None:
    """The service of this repository behind host:port; None where nothing of the kind answers there."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{health}/health/versions", timeout=HEALTH_SECONDS) as answer:
            found = Service.model_validate(json.loads(answer.read(MOST_BYTES)))
    except (OSError, ValueError, ValidationError):  # OSError: nobody listens, or says 404
        return None
    return found if found.rollouts == record.id else None


def check_health(health: str) -> str:
    """InputError for what is no host:port."""
    host, colon, port = health.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
        raise InputError(f"--health {health}: give host:port of the service's /health, as {HEALTH}")
    return health


def wait_until_serving(health: str, record: Record, seconds: float) -> Outcome:
    """Until the service serves what the record says."""
    version = record.serving

    def look(service: Service) -> str | None:
        return f"version {version} serves at {health} now" if service.serving == version else None

    return _wait(health, record, version, seconds, look)


def wait_for_candidate(health: str, record: Record, seconds: float) -> Outcome:
    """Until the service runs the candidate, beside the version in service."""
    version = record.candidate
    assert version is not None

    def look(service: Service) -> str | None:
        found = service.versions.get(version)
        ready = found is not None and found.state == "ready"
        return f"the service at {health} runs it: a client that names version {version} gets it" if ready else None

    return _wait(health, record, version, seconds, look)


def _wait(health: str, record: Record, version: int, seconds: float, look: Callable[[Service], str | None]) -> Outcome:
    end = time.monotonic() + seconds
    service = _find(health, record)
    if service is None:
        return Outcome(None, f"no service of this repository answers at {health}; what starts from now on serves this")
    if (told := look(service)) is not None:
        return Outcome(True, told)
    with tqdm(desc=f"version {version} starts", bar_format="{desc} {elapsed}", disable=None, leave=False) as bar:
        while time.monotonic() < end:
            if service is not None:
                if (told := look(service)) is not None:
                    return Outcome(True, told)
                if version in service.failed:
                    return Outcome(
                        False,
                        f"version {version} does not run at {health}: {service.failed[version]}; version "
                        f"{service.serving} goes on serving there",
                    )
            time.sleep(LOOK_SECONDS)
            bar.update(0)
            bar.refresh()
            service = ask_service(health, record)
    state = "does not answer any more" if service is None else f"still serves version {service.serving}"
    return Outcome(False, f"the service at {health} {state}, and does not run version {version} after {seconds:g} s")


def _find(health: str, record: Record) -> Service | None:
    """A service that has just seen the repository's first step does not tell its id at once."""
    for _ in range(10 if record.step <= 2 else 1):
        if (service := ask_service(health, record)) is not None:
            return service
        if not _listens(health):
            return None
        time.sleep(LOOK_SECONDS)
    return None


def _listens(health: str) -> bool:
    import socket

    host, _, port = health.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), HEALTH_SECONDS):
            return True
    except OSError:
        return False


def report(outcome: Outcome) -> bool:
    """Prints it, to stderr where it is a fault; whether it is none."""
    print(outcome.told, file=sys.stderr if outcome.followed is False else sys.stdout)
    return outcome.followed is not False
