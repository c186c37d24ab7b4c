"""Whether a running `upsnet serve` has taken up a step: it is waited for, as it follows the record by itself."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tqdm import tqdm

from serving.rollouts.record import Record
from serving.rollouts.running import HEALTH, Running, ask_service
from upsnet.errors import InputError

LOOK_SECONDS = 0.2
SETTLED = 2.0  # seconds in which a service has seen a step: what it has given up before, it tries again then


class Outcome(NamedTuple):
    """What came of waiting."""

    followed: bool | None  # None: no service of this repository is there
    told: str  # a line for people


def service_of(health: str, record: Record) -> Running | None:
    """The service of this repository behind host:port; None where nothing of the kind answers there."""
    found = ask_service(health)
    return found if found is not None and found.rollouts == record.id else None


def check_health(health: str) -> str:
    """InputError for what is no host:port."""
    host, colon, port = health.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
        raise InputError(f"--health {health}: give host:port of the service's /health, as {HEALTH}")
    return health


def wait_until_serving(health: str, record: Record, seconds: float) -> Outcome:
    """Until the service serves what the record says."""
    version = record.serving

    def look(service: Running) -> str | None:
        return f"version {version} serves at {health} now" if service.serving == version else None

    return _wait(health, record, version, seconds, look)


def wait_for_candidate(health: str, record: Record, seconds: float) -> Outcome:
    """Until the service runs the candidate, beside the version in service."""
    version = record.candidate
    assert version is not None

    def look(service: Running) -> str | None:
        found = service.versions.get(version)
        ready = found is not None and found.state == "ready"
        return f"the service at {health} runs it: a client that names version {version} gets it" if ready else None

    return _wait(health, record, version, seconds, look)


def _wait(health: str, record: Record, version: int, seconds: float, look: Callable[[Running], str | None]) -> Outcome:
    if not seconds:
        return Outcome(None, "the service, if one runs, is not waited for")
    begun = time.monotonic()
    end = begun + seconds
    service = _find(health, record)
    if service is None:
        return Outcome(None, f"no service of this repository answers at {health}; one that starts from now on follows")
    if (told := look(service)) is not None:
        return Outcome(True, told)
    with tqdm(desc=f"version {version} starts", bar_format="{desc} {elapsed}", disable=None, leave=False) as bar:
        while time.monotonic() < end:
            if service is not None:
                if (told := look(service)) is not None:
                    return Outcome(True, told)
                if version in service.failed and time.monotonic() > begun + SETTLED:
                    return Outcome(
                        False,
                        f"version {version} does not run at {health}: {service.failed[version]}; version "
                        f"{service.serving} goes on serving there",
                    )
            time.sleep(LOOK_SECONDS)
            bar.update(0)
            bar.refresh()
            service = service_of(health, record)
    state = "does not answer any more" if service is None else f"still serves version {service.serving}"
    return Outcome(False, f"the service at {health} {state}, and does not run version {version} after {seconds:g} s")


def _find(health: str, record: Record) -> Running | None:
    """A service that has just seen the repository's first step does not tell its id at once."""
    for _ in range(10 if record.step <= 2 else 1):
        if (service := service_of(health, record)) is not None:
            return service
        if not _listens(health):
            return None
        time.sleep(LOOK_SECONDS)
    return None


def _listens(health: str) -> bool:
    host, _, port = health.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), 1.0):
            return True
    except OSError:
        return False


def report(outcome: Outcome) -> bool:
    """Prints it, to stderr where it is a fault; whether it is none."""
    print(outcome.told, file=sys.stderr if outcome.followed is False else sys.stdout)
    return outcome.followed is not False


def report_taken_up(servers: Sequence[str], outcome: Outcome, version: int) -> bool:
    """`report`, and the containers that have taken a version up; where there are some, nobody misses a service."""
    for each in servers:
        print(f"version {version} serves at {each} now")
    return True if servers and outcome.followed is None else report(outcome)
