"""A canary as `upsnet deploy promote --canary` runs it: the service mirrors, this watches and decides."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from serving.rollouts.lease import DEADLINE, Lease, give_up, lease_path, renew
from serving.rollouts.record import Record, check_same, read_record
from serving.rollouts.running import Running, ask_service
from serving.rollouts.tally import MISSING, Figures
from upsnet.errors import InputError
from upsnet.figures import share as percent

LOOK_SECONDS = 1.0
HEALTH_SECONDS = 2.0  # for an answer
GONE_SECONDS = 20.0  # without one: the service has gone
PHOTOS, SECONDS = 50, 600.0


class CanaryLimits(NamedTuple):
    """Of a canary."""

    photos: int = PHOTOS  # that must have been compared
    seconds: float = SECONDS  # in which they must have come
    min_identical: float | None = None  # share of their pixels; None: not asked for
    max_latency_ratio: float | None = None  # of the candidate's median and that of the version in service
    deadline: float = DEADLINE  # seconds in which a version must answer a mirrored request


class CanaryVerdict(NamedTuple):
    """reasons: why the candidate should not serve, one line each; empty where nothing speaks against it. lines: what
    was found, for the terminal."""

    reasons: list[str]
    figures: dict[str, Any]
    lines: list[str]


def parse_share(text: str, option: str = "--canary") -> float:
    """'10%' or '0.1' -> 0.1. InputError, which names the option, for what is no share above 0 and at most 1."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})\s*(%?)", text.strip(), re.ASCII)
    value = float(found[1]) / (100 if found[2] else 1) if found else 0.0
    if not 0 < value <= 1:
        raise InputError(f"{option} {text}: give a share of the requests, above 0 and at most 100%, as 10%")
    return value


def run_canary(
    repository: Path,
    record: Record,
    health: str,
    share: float,
    limits: CanaryLimits,
    *,
    progress: bool = True,
) -> CanaryVerdict:
    """Has the service behind `health` (host:port of its operators' port) mirror a share of its callers' requests to
    the candidate, until enough of them are compared or something speaks against it.

    InputError where no such service runs on this repository, where another canary holds, and where the repository's
    state moves meanwhile. Whatever ends it, the mirroring ends.
    """
    if record.candidate is None:
        raise InputError(f"{repository} has no candidate; `upsnet deploy stage` puts one there")
    path = lease_path(repository)
    check_service(record, health)
    lease = Lease(version=record.candidate, share=share, deadline=limits.deadline, until=0)
    watch = _Watch(health, record, lease)
    begun = time.monotonic()
    try:
        with tqdm(total=limits.photos, desc="canary", unit="photo", disable=None if progress else True) as bar:
            while True:
                check_same(read_record(repository), record)
                renew(path, lease)
                figures = watch.look()
                if figures is not None:
                    bar.n = min(figures.photos, limits.photos)  # fewer, where the service was started anew
                    bar.set_postfix_str(_said(figures), refresh=True)
                    broken = against(figures)
                    if broken or figures.photos >= limits.photos:
                        return verdict_of(broken or judge(figures, limits), figures)
                if time.monotonic() - begun >= limits.seconds:
                    return verdict_of([_too_few(figures, limits)], figures)
                time.sleep(LOOK_SECONDS)
    finally:
        give_up(path, lease)


def check_service(record: Record, health: str) -> None:
    """InputError where no service that can have a canary of this repository answers there: before a long gate."""
    if _ask(record, health) is None:
        raise InputError(
            f"no `upsnet serve` that can have a canary answers at {health}: start the one that callers use, name its "
            "operators' port with --health, or leave out --canary"
        )


def against(figures: Figures) -> list[str]:
    """What no further photo would mend."""
    version = figures.version
    reasons = []
    if "does not run: " in figures.trouble:
        reasons.append(f"canary: {figures.trouble}")
    if figures.restarts > 0:
        reasons.append(f"canary: the server of version {version} was started anew {_times(figures.restarts)} meanwhile")
    failed = figures.failed.get("candidate", 0)
    if failed:
        late = figures.late.get("candidate", 0)
        said = [text.removeprefix("candidate: ") for text in figures.said if text.startswith("candidate: ")]
        words = f"{late} of them too late; " if late else ""
        reasons.append(
            f"canary: version {version} failed at {failed} of {figures.mirrored} requests ({words}{'; '.join(said)})"
        )
    return reasons


def judge(figures: Figures, limits: CanaryLimits) -> list[str]:
    """Of a canary that has compared enough photos."""
    reasons = []
    identical, ratio = figures.identical, figures.latency_ratio
    if limits.min_identical is not None and (identical is None or identical < limits.min_identical):
        found = "none" if identical is None else percent(identical)
        named = ", ".join(f"{each.name} {percent(each.identical)}" for each in figures.classes if each.identical < 1)
        reasons.append(
            f"canary: {found} of the pixels identical with version {figures.serving}, needed "
            f"{100 * limits.min_identical:g} %{f' (fewest: {named})' if named else ''}"
        )
        reasons += [f"canary: {each}" for each in figures.different]
    if limits.max_latency_ratio is not None and (ratio is None or ratio > limits.max_latency_ratio):
        found = "unknown" if ratio is None else f"{ratio:.2f} times"
        times = (figures.candidate_ms, figures.serving_ms)
        told = ", ".join(f"{each.p50:.1f} ms" for each in times if each is not None)
        reasons.append(
            f"canary: median latency {found} that of version {figures.serving} ({told}), allowed "
            f"{limits.max_latency_ratio:g}"
        )
    return reasons


def verdict_of(reasons: list[str], figures: Figures | None) -> CanaryVerdict:
    if figures is None:
        return CanaryVerdict(reasons, {}, [])
    lines = [f"canary: {figures.photos} photos of callers compared with version {figures.serving}"]
    if figures.identical is not None:
        lines.append(f"identical pixels: {percent(figures.identical)}")
    if figures.candidate_ms is not None and figures.serving_ms is not None:
        lines.append(
            f"latency, alone: p50 {figures.candidate_ms.p50:.1f} ms against {figures.serving_ms.p50:.1f} ms, p95 "
            f"{figures.candidate_ms.p95:.1f} ms against {figures.serving_ms.p95:.1f} ms of the version in service"
        )
    return CanaryVerdict(reasons, figures.model_dump(mode="json"), [*lines, *figures.different])


def _too_few(figures: Figures | None, limits: CanaryLimits) -> str:
    found, why = (figures.photos if figures else 0), []
    if figures is not None:
        why.append(f"{figures.seen} requests came, {100 * figures.share:g} % are chosen")
        why += [f"{count} not compared: {reason}" for reason, count in figures.skipped.items()]
        why += [f"version {figures.serving} itself failed at {n}" for n in [figures.failed.get("serving", 0)] if n]
        why += [figures.trouble] if figures.trouble else []
    told = f" ({'; '.join(why)})" if why else ""
    return f"canary: {found} of {limits.photos} photos were compared within {limits.seconds:g} s{told}"


def _said(figures: Figures) -> str:
    parts = [figures.trouble] if figures.trouble else []
    if figures.identical is not None:
        parts.append(f"{percent(figures.identical)} identical")
    if figures.latency_ratio is not None:
        parts.append(f"{figures.latency_ratio:.2f} times the latency")
    return ", ".join(parts)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _ask(record: Record, health: str) -> Running | None:
    """What the service tells of its versions; None where it does not answer now. InputError where it is another one."""
    told = ask_service(health, HEALTH_SECONDS)
    if told is not None and told.rollouts != record.id:
        raise InputError(f"the service at {health} serves another repository; name the right one with --health")
    return told


class _Watch:
    """On a service that should follow a lease."""

    def __init__(self, health: str, record: Record, lease: Lease) -> None:
        self._health, self._record, self._lease = health, record, lease
        self._answered = self._followed = time.monotonic()

    def look(self) -> Figures | None:
        """None where it has not begun, or does not answer for a moment. InputError where that lasts."""
        now = time.monotonic()
        told = _ask(self._record, self._health)
        if told is None:
            if now - self._answered > GONE_SECONDS:
                raise InputError(f"the service at {self._health} has not answered for {GONE_SECONDS:g} s; begin again")
            return None
        self._answered = now
        found, figures = told.canary, None
        if found is not None and found.get("lease") == self._lease.id and found.get("active"):
            figures = Figures.model_validate(found)
        if figures is not None and not figures.trouble.endswith(MISSING):
            self._followed = now
        elif now - self._followed > GONE_SECONDS:
            why = figures.trouble if figures is not None else "it does not take up the canary"
            raise InputError(
                f"the service at {self._health}: {why}; is it of this version, without --no-candidate, and may it read "
                "the repository?"
            )
        return figures
