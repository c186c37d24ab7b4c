"""Models of a server: how it is, what it answers, how long that took, and that it goes and comes back."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.conftest import photo_of, scene
from tests.upsnet.client.fake_server import FakeServer, refusal
from tests.upsnet.client.fake_server import server as server
from tests.upsnet.viewer.page import Page, encoded, running, unpacked
from upsnet.model import Model
from upsnet.viewer import models
from upsnet.viewer.models import Answering, OwnModel

PHOTO = encoded(photo_of(scene(0)))


@pytest.fixture
def page(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    monkeypatch.setattr(models, "FRESH_SECONDS", 0.0)
    own = OwnModel("m0", "own", "own", lambda: server.predictor)
    with running([own], [Answering(server.url, None)]) as opened:
        yield opened


def how(page: Page) -> tuple[str, str]:
    told = page.get("/api/models").json()["models"][0]
    return told["state"], told["reason"]


def test_a_servers_answer_and_its_stages(server: FakeServer, page: Page) -> None:
    photo = page.give(PHOTO)
    answer = page.answer(photo, "s0")
    np.testing.assert_array_equal(unpacked(answer["map"]), Model(server.predictor).predict(PHOTO).ids)
    assert [stage["name"] for stage in answer["stages"]] == ["waiting", "server", "packing"]  # it tells no more
    server.stages = {"decode": 0.001, "resize": 0.001, "network": 0.002, "restore": 0.001}
    stages = page.answer(photo, "s0")["stages"]
    assert [stage["name"] for stage in stages] == ["waiting", *server.stages, "queue, transport", "packing"]
    assert {stage["name"]: stage["seconds"] for stage in stages}.items() >= server.stages.items()
    page.answer(photo, "m0")
    assert page.get(f"/api/photos/{photo['id']}/difference?a=s0&b=m0").json()["differing"] == 0


def test_a_server_that_goes_and_comes_back(server: FakeServer, page: Page) -> None:
    photo = page.give(PHOTO)
    assert how(page) == ("ready", "")
    server.ready = False
    state, reason = how(page)
    assert state == "failed" and "restarting" in reason
    refused = page.ask("POST", f"/api/photos/{photo['id']}/answers?model=s0")
    assert (refused.status, refused.json()["kind"]) == (502, "server") and "restarting" in refused.json()["error"]
    server.ready = True
    assert how(page) == ("ready", "") and page.answer(photo, "s0")["segments"]
    server.stop()
    state, reason = how(page)
    assert state == "failed" and reason.startswith("no Triton server answers at 127.0.0.1:")
    assert page.ask("POST", f"/api/photos/{photo['id']}/answers?model=s0").status == 502
    assert page.answer(photo, "m0")["segments"]  # the other model is not disturbed


def test_a_server_that_dies_while_it_is_asked(server: FakeServer, page: Page) -> None:
    photo = page.give(PHOTO)
    server.troubles += [refusal("UNAVAILABLE", "the server stops")] * 8
    reply = page.ask("POST", f"/api/photos/{photo['id']}/answers?model=s0")
    assert (reply.status, reply.json()["kind"]) == (502, "server") and "the server stops" in reply.json()["error"]
    server.troubles.clear()
    assert page.answer(photo, "s0")["segments"]


def test_a_server_that_serves_another_network_now(server: FakeServer, page: Page) -> None:
    photo, before = page.give(PHOTO), page.get("/api/models").json()["models"][0]
    assert before["network"] == "fake"
    assert page.answer(photo, "s0")["identity"] == page.answer(photo, "m0")["identity"] == before["identity"]
    server.predictor.manifest = server.predictor.manifest.model_copy(update={"name": "retrained"})
    after = page.get("/api/models").json()["models"][0]
    assert after["network"] == "retrained"
    assert page.answer(photo, "s0")["identity"] == after["identity"] != before["identity"]


def test_the_versions_of_a_server_are_models_of_their_own(server: FakeServer, page: Page) -> None:
    where = server.url.removeprefix("grpc://")

    def titles() -> dict[str, str]:
        return {model["id"]: model["title"] for model in page.get("/api/models").json()["models"]}

    assert titles() == {"s0": f"Triton at {where}", "m0": "own"}
    server.version, server.versions = "2", [2, 3]
    names = {"s0": "In service (version 2)", "s0v2": "Version 2", "s0v3": "Version 3"}
    assert titles() == {id: f"{name} at {where}" for id, name in names.items()} | {"m0": "own"}
    photo = page.give(PHOTO)
    for model in ("s0", "s0v3"):
        assert page.answer(photo, model)["title"] == f"{names[model]} at {where}"
    assert server.asked_versions == ["", "3"]
    server.version, server.versions = "3", [3]  # it was promoted, and the other one has left
    assert titles() == {"s0": f"Triton at {where}", "m0": "own"}
    reply = page.ask("POST", f"/api/photos/{photo['id']}/answers?model=s0v2")
    assert (reply.status, reply.json()["kind"]) == (404, "forgotten")
