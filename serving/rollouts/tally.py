"""What came of a canary: a candidate beside the version in service, on the requests of its callers."""

from __future__ import annotations

import statistics
from collections import Counter, deque
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel

KEPT = 2000  # pairs of latencies: the newest
WORST = 5  # classes and requests that are named
MOST_SAID = 5  # messages that are told apart
MISSING = "not run by this service"  # the end of the trouble with a version that the service has not taken up
Who = Literal["serving", "candidate"]


class Answer(BaseModel):
    """How one version answered one mirrored request."""

    seconds: float
    error: str = ""  # why there is no answer
    late: bool = False  # it is the deadline


class Compared(BaseModel):
    """What the mirror says of one request."""

    skipped: str = ""  # why there was nothing to compare
    serving: Answer | None = None
    candidate: Answer | None = None
    photos: list[tuple[int, int]] = []  # pixels, identical ones
    classes: list[tuple[str, int, int]] = []  # by the version in service: name, pixels, identical ones
    different: list[str] = []  # how the candidate's model is another one


class Latency(BaseModel):
    """Milliseconds of one version, asked alone."""

    p50: float
    p95: float


class Named(BaseModel):
    """A class, or a request by its id in the access log: the share of its pixels that are identical."""

    name: str
    pixels: int
    identical: float


class Figures(BaseModel):
    """A canary so far. Shares are fractions."""

    lease: str  # its id
    version: int  # the candidate
    serving: int  # the version that it is compared with
    share: float  # of the requests that are mirrored
    since: str  # UTC, ISO 8601
    active: bool  # whether the lease holds
    trouble: str = ""  # why nothing is mirrored now
    seen: int = 0  # requests that the version in service answered meanwhile
    mirrored: int = 0  # of them both versions were asked again
    skipped: dict[str, int] = {}  # chosen and not compared: why
    photos: int = 0  # compared
    identical: float | None = None  # of all pixels of these
    least_identical: float | None = None  # of one request
    serving_ms: Latency | None = None
    candidate_ms: Latency | None = None
    latency_ratio: float | None = None  # of the medians
    failed: dict[Who, int] = {}  # requests that a version did not answer, or not in time
    late: dict[Who, int] = {}  # of them, those whose deadline passed
    said: dict[str, int] = {}  # what was said of failures, the candidate's first
    restarts: int = 0  # of the candidate's server meanwhile
    different: list[str] = []  # how the candidate's model is another one: classes, network size
    classes: list[Named] = []  # those with the fewest identical pixels
    requests: list[Named] = []  # likewise


class Tally:
    """Adds it up. Bounded: it grows with the classes alone."""

    def __init__(self, lease: str, version: int, serving: int, share: float) -> None:
        self._since = datetime.now(UTC).isoformat(timespec="milliseconds")
        self.lease, self.version, self.serving, self.share = lease, version, serving, share
        self.seen = self.restarts = 0
        self._mirrored = self._photos = self._pixels = self._identical = 0
        self._skipped: Counter[str] = Counter()
        self._failed: Counter[Who] = Counter()
        self._late: Counter[Who] = Counter()
        self._said: Counter[str] = Counter()
        self._seconds: deque[tuple[float, float]] = deque(maxlen=KEPT)
        self._classes: dict[str, tuple[int, int]] = {}
        self._worst: list[Named] = []
        self._different: list[str] = []

    def skip(self, why: str) -> None:
        self._skipped[why] += 1

    def add(self, request_id: str, found: Compared) -> str:
        """One request; its outcome in a word: compared, failed, late or skipped."""
        self._different = found.different or self._different
        if found.skipped:
            self.skip(found.skipped)
            return "skipped"
        self._mirrored += 1
        assert found.serving is not None and found.candidate is not None
        answers: tuple[tuple[Who, Answer], ...] = (("candidate", found.candidate), ("serving", found.serving))
        for who, answer in answers:
            self._failed[who] += bool(answer.error)
            self._late[who] += answer.late
            told = f"{who}: {answer.error}"
            if answer.error and (told in self._said or len(self._said) < MOST_SAID):
                self._said[told] += 1
        if any(answer.error for _, answer in answers):
            return "late" if any(answer.late for _, answer in answers) else "failed"
        self._seconds.append((found.serving.seconds, found.candidate.seconds))
        self._photos += len(found.photos)
        pixels, identical = (sum(counts) for counts in zip(*found.photos, strict=True))
        self._pixels += pixels
        self._identical += identical
        self._worst = _worst([*self._worst, Named(name=request_id, pixels=pixels, identical=identical / pixels)])
        for name, seen, same in found.classes:
            before = self._classes.get(name, (0, 0))
            self._classes[name] = before[0] + seen, before[1] + same
        return "compared"

    def figures(self, active: bool, trouble: str = "") -> dict[str, Any]:
        serving, candidate = _latencies([each[0] for each in self._seconds]), _latencies([e[1] for e in self._seconds])
        classes = [Named(name=name, pixels=n, identical=same / n) for name, (n, same) in self._classes.items() if n]
        return Figures(
            lease=self.lease,
            version=self.version,
            serving=self.serving,
            share=self.share,
            since=self._since,
            active=active,
            trouble=trouble,
            seen=self.seen,
            mirrored=self._mirrored,
            skipped=dict(self._skipped),
            photos=self._photos,
            identical=self._identical / self._pixels if self._pixels else None,
            least_identical=min((each.identical for each in self._worst), default=None),
            serving_ms=serving,
            candidate_ms=candidate,
            latency_ratio=round(candidate.p50 / serving.p50, 4) if serving and candidate else None,
            failed={who: count for who, count in self._failed.items() if count},
            late={who: count for who, count in self._late.items() if count},
            said=dict(sorted(self._said.items())),
            restarts=self.restarts,
            different=self._different,
            classes=[each for each in _worst(classes) if each.identical < 1],
            requests=[each for each in self._worst if each.identical < 1],
        ).model_dump(mode="json")


def _worst(some: list[Named]) -> list[Named]:
    return sorted(some, key=lambda each: each.identical)[:WORST]


def _latencies(seconds: list[float]) -> Latency | None:
    if not seconds:
        return None
    ordered = sorted(seconds)
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return Latency(p50=round(1000 * statistics.median(ordered), 3), p95=round(1000 * p95, 3))
