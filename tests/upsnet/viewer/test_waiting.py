"""A model that takes its time, or that is being opened: who waits for it, and who does not."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.conftest import FakePredictor, Halves, photo_of, scene
from tests.upsnet.viewer.page import Page, encoded, running
from upsnet.runtimes.predictor import Predictor
from upsnet.viewer import app
from upsnet.viewer.models import OwnModel

PHOTO = encoded(photo_of(scene(0)))  # 48 x 64


class Stuck:
    """Opens when it is let."""

    def __init__(self) -> None:
        self.asked, self.let = threading.Event(), threading.Event()

    def __call__(self) -> Predictor:
        self.asked.set()
        assert self.let.wait(20)
        return Halves()


@pytest.fixture
def stuck() -> list[Stuck]:
    return [Stuck() for _ in range(app.AT_WORK + 1)]


@pytest.fixture
def page(stuck: list[Stuck]) -> Iterator[Page]:
    models = [OwnModel(f"stuck{number}", "Stuck", "stuck", each) for number, each in enumerate(stuck)]
    with running([OwnModel("m0", "Fake", "runs/a", lambda: FakePredictor("a")), *models]) as opened:
        try:
            yield opened
        finally:
            for each in stuck:
                each.let.set()


@contextmanager
def asking(page: Page, photo: dict[str, str], model: str) -> Iterator[http.client.HTTPConnection]:
    """For an answer that is not awaited: whoever asked goes away in the end."""
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=20)
    connection.request("POST", f"/api/photos/{photo['id']}/answers?model={model}")
    try:
        yield connection
    finally:
        connection.close()


def test_models_that_are_being_opened_keep_nobody_waiting(page: Page, stuck: list[Stuck]) -> None:
    photo = page.give(PHOTO)
    for number, each in enumerate(stuck):
        with asking(page, photo, f"stuck{number}"):  # and goes away
            assert each.asked.wait(20)
    assert page.answer(page.give(PHOTO), "m0")["segments"]
    assert not any(each.let.is_set() for each in stuck)


def test_the_wait_for_a_model_is_a_stage_of_its_own(page: Page, stuck: list[Stuck]) -> None:
    photo = page.give(PHOTO)
    with asking(page, photo, "stuck0"):
        assert stuck[0].asked.wait(20)
        with asking(page, photo, "stuck0") as second:
            time.sleep(0.3)  # in which it waits
            stuck[0].let.set()
            answer = second.getresponse()
            assert answer.status == 200
            stages = {each["name"]: each["seconds"] for each in json.loads(answer.read())["stages"]}
    assert stages["waiting"] > 0.1 and "opening, once" not in stages


def test_who_goes_away_waits_no_more(page: Page, stuck: list[Stuck], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "MOST_WAITING", 3)
    photo = page.give(PHOTO)
    with asking(page, photo, "stuck0"):
        assert stuck[0].asked.wait(20)
    until = time.monotonic() + 20
    for _ in range(5):
        with asking(page, photo, "stuck0"):  # which has no turn
            pass
        while page.ask("POST", f"/api/photos/{photo['id']}/answers?model=m0").status == 503:
            assert time.monotonic() < until


def test_who_comes_when_too_much_waits_is_told_so(
    page: Page, stuck: list[Stuck], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "MOST_WAITING", 1)
    photo = page.give(PHOTO)
    with asking(page, photo, "stuck0") as first:
        assert stuck[0].asked.wait(20)
        reply = page.ask("POST", f"/api/photos/{photo['id']}/answers?model=m0")
        assert (reply.status, reply.json()["kind"], reply.headers["Retry-After"]) == (503, "busy", "2")
        assert page.get("/api/models").status == 200  # what takes no work is answered
        stuck[0].let.set()
        assert first.getresponse().status == 200
    assert page.answer(photo, "m0")
