"""The command's side of a canary: what it asks the service, and what it decides by its figures."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from serving.repository import check_parts
from serving.rollouts import canary as module
from serving.rollouts.canary import CanaryLimits, against, judge, parse_share, run_canary
from serving.rollouts.lease import Lease, lease_path, read_lease, renew
from serving.rollouts.record import Record, read_record
from serving.rollouts.steps import discard, stage
from serving.rollouts.tally import KEPT, MISSING, Answer, Compared, Figures, Tally
from tests.serving.conftest import Exported
from upsnet.errors import InputError


@pytest.mark.parametrize(
    ("text", "share"), [("10%", 0.1), ("0.25", 0.25), ("100 %", 1), (" .5 ", 0.5), ("2.5%", 0.025)]
)
def test_shares(text: str, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "0", "0%", "101%", "1.1", "-5%", "nan", "ten", "5%%", "1e-1"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(InputError, match=r"--record-share .* as 10%"):
        parse_share(text, "--record-share")


def compared(seconds: float = 0.2, identical: int = 9, **changes: Any) -> Compared:
    found = Compared(
        serving=Answer(seconds=0.1),
        candidate=Answer(seconds=seconds),
        photos=[(10, identical)],
        classes=[("cat", 6, identical - 4), ("void", 4, 4)],
    )
    return found.model_copy(update=changes)


def tally(*found: Compared, lease: str = "l") -> Tally:
    made = Tally(lease, 2, 1, 0.1)
    for number, each in enumerate(found):
        made.add(f"r{number}", each)
    return made


def figures(*found: Compared) -> Figures:
    return Figures.model_validate(tally(*found).figures(True))


def test_nothing_against_it() -> None:
    found = figures(compared(), compared(identical=10))
    assert against(found) == [] == judge(found, CanaryLimits())
    assert judge(found, CanaryLimits(min_identical=0.95, max_latency_ratio=2)) == []


def test_pixels_and_latency_beyond_their_limits_are_named() -> None:
    found = figures(compared(different=["network size: 64 to 128, the candidate 32 to 64"]))
    assert judge(found, CanaryLimits(min_identical=0.95, max_latency_ratio=1.5)) == [
        "canary: 90.000 % of the pixels identical with version 1, needed 95 % (fewest: cat 83.333 %)",
        "canary: network size: 64 to 128, the candidate 32 to 64",
        "canary: median latency 2.00 times that of version 1 (200.0 ms, 100.0 ms), allowed 1.5",
    ]


def test_a_candidate_that_fails_is_late_or_dies_is_refused_by_its_own_words() -> None:
    late = compared(candidate=Answer(seconds=9, error="no answer within 9 s", late=True), photos=[])
    failed = compared(candidate=Answer(seconds=9, error="the network is broken"), photos=[])
    assert against(figures(compared(), late, failed)) == [
        "canary: version 2 failed at 2 of 3 requests (1 of them too late; no answer within 9 s; the network is broken)"
    ]
    dead = tally().figures(True, "version 2 does not run: it died 5 times") | {"restarts": 1}
    assert against(Figures.model_validate(dead)) == [
        "canary: version 2 does not run: it died 5 times",
        "canary: the server of version 2 was started anew once meanwhile",
    ]


def test_what_the_version_in_service_fails_at_is_not_the_candidates_fault() -> None:
    found = figures(compared(serving=Answer(seconds=1, error="busy"), photos=[]))
    assert against(found) == [] and found.failed == {"serving": 1} and found.photos == 0


def test_a_tally_stays_small() -> None:
    made = tally(*(compared(candidate=Answer(seconds=1, error=f"error {n}"), photos=[]) for n in range(50)))
    for number in range(3000):
        made.add(f"q{number}", compared(identical=4 + number % 7))
    found = Figures.model_validate(made.figures(True))
    assert len(found.said) == 5 and len(found.requests) == 5 and len(made._seconds) == KEPT
    assert [each.identical for each in found.requests] == [0.4] * 5 and found.least_identical == 0.4


class Service:
    """The operators' port of a service that follows a lease as the test says: `answer` of the lease -> its JSON."""

    def __init__(self, repository: Path, record: Record) -> None:
        self.leases: list[Lease] = []
        self.answer: Callable[[Lease], Any] = lambda lease: {}
        self.rollouts, self.status = record.id, 200
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                lease = read_lease(lease_path(repository))
                if lease is not None:
                    service.leases.append(lease)
                told = {"rollouts": service.rollouts, "serving": 1, "ports": {}, "versions": {}}
                told["canary"] = service.answer(lease) if lease else None
                self.send_response(service.status if self.path == "/health/versions" else 500)
                self.end_headers()
                self.wfile.write(json.dumps(told).encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.health = f"127.0.0.1:{self.server.server_address[1]}"


@contextmanager
def serving(repository: Path, record: Record) -> Iterator[Service]:
    service = Service(repository, record)
    threading.Thread(target=service.server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield service
    finally:
        service.server.shutdown()
        service.server.server_close()


@pytest.fixture
def staged(exported: Exported, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Service]]:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    record = stage(repository, check_parts(exported.model, exported.manifest_path))
    with serving(repository, record) as service:
        yield repository, service


def run(staged: tuple[Path, Service], limits: CanaryLimits | None = None) -> Any:
    repository, service = staged
    record = read_record(repository)
    return run_canary(repository, record, service.health, 0.1, limits or CanaryLimits(photos=2), progress=False)


def test_it_watches_until_enough_photos_are_compared_and_ends_the_mirroring(staged: tuple[Path, Service]) -> None:
    repository, service = staged
    found: list[Compared] = []

    def answer(lease: Lease) -> Any:
        found.append(compared())
        return tally(*found, lease=lease.id).figures(True)

    service.answer = answer
    verdict = run(staged)
    assert verdict.reasons == [] and verdict.figures["photos"] == 2 and verdict.figures["identical"] == 0.9
    assert verdict.lines == [
        "canary: 2 photos of callers compared with version 1",
        "identical pixels: 90.000 %",
        "latency, alone: p50 200.0 ms against 100.0 ms, p95 200.0 ms against 100.0 ms of the version in service",
    ]
    assert {(lease.version, lease.share) for lease in service.leases} == {(2, 0.1)}
    assert not lease_path(repository).exists()
    found.clear()
    assert "needed 95 %" in run(staged, CanaryLimits(photos=2, min_identical=0.95)).reasons[0]


def test_it_refuses_at_the_first_failure(staged: tuple[Path, Service]) -> None:
    broken = compared(candidate=Answer(seconds=1, error="the network is broken"), photos=[])
    staged[1].answer = lambda lease: tally(compared(), broken, lease=lease.id).figures(True)
    assert run(staged, CanaryLimits(photos=100)).reasons == [
        "canary: version 2 failed at 1 of 2 requests (the network is broken)"
    ]


def test_too_few_photos_say_why(staged: tuple[Path, Service]) -> None:
    def answer(lease: Lease) -> Any:
        made = tally(compared(), lease=lease.id)
        made.seen = 30
        for _ in range(3):
            made.skip("it is a large request")
        return made.figures(True)

    staged[1].answer = answer
    (reason,) = run(staged, CanaryLimits(photos=2, seconds=0.1)).reasons
    assert reason == (
        "canary: 1 of 2 photos were compared within 0.1 s (30 requests came, 10 % are chosen; 3 not compared: it is a "
        "large request)"
    )


def test_a_service_that_is_not_there_is_another_or_too_old(
    staged: tuple[Path, Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, service = staged
    service.rollouts = "another"
    with pytest.raises(InputError, match="serves another repository"):
        run(staged)
    for status in (404, 500):
        service.status = status
        with pytest.raises(InputError, match="no `upsnet serve` that can have a canary answers at"):
            run(staged)
    service.status, service.rollouts = 200, read_record(repository).id
    monkeypatch.setattr(module, "GONE_SECONDS", 0.05)
    with pytest.raises(InputError, match="does not take up the canary"):
        run(staged)
    service.answer = lambda lease: tally(lease=lease.id).figures(True, f"version 2 is {MISSING}")
    with pytest.raises(
        InputError, match="version 2 is not run by this service; is it of this version, without --no-candidate"
    ):
        run(staged)
    assert not lease_path(repository).exists()


def test_a_service_that_goes_meanwhile(staged: tuple[Path, Service], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GONE_SECONDS", 0.05)

    def answer(lease: Lease) -> Any:
        staged[1].status = 500
        return tally(lease=lease.id).figures(True)

    staged[1].answer = answer
    with pytest.raises(InputError, match="has not answered for"):
        run(staged)


def test_another_step_or_another_canary_ends_it(staged: tuple[Path, Service]) -> None:
    repository, service = staged

    def answer(lease: Lease) -> Any:
        discard(repository)
        service.answer = lambda lease: tally(lease=lease.id).figures(True)
        return tally(lease=lease.id).figures(True)

    service.answer = answer
    with pytest.raises(InputError, match=r"another step \(discard, version 2\)"):
        run(staged)
    assert not lease_path(repository).exists()
    with pytest.raises(InputError, match="has no candidate"):
        run(staged)


def test_two_canaries(staged: tuple[Path, Service]) -> None:
    other = Lease(version=2, share=0.5, until=0)
    renew(lease_path(staged[0]), other)
    with pytest.raises(InputError, match="runs a canary of version 2"):
        run(staged)
    assert read_lease(lease_path(staged[0])) == other
