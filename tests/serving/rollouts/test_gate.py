"""The gate against real Tritons: what is right passes, what is made wrong on purpose does not, and nobody notices."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving import repository as repository_module
from serving.repository import deploy_engine, engine_parts
from serving.rollouts import steps
from serving.rollouts.gate import GateOptions, GateResult, hold_gate
from serving.rollouts.record import read_record
from serving.rollouts.running import ask_service
from serving.server import TritonServer
from tests.serving.rollouts import candidates
from upsnet.contract import MODEL, PHOTO_MODEL
from upsnet.errors import InputError
from upsnet.geometry import NetworkBatch
from upsnet.parity.gate import GateLimits
from upsnet.runtimes.triton import TritonPredictor

pytestmark = pytest.mark.triton
SECONDS = 0.5  # of load on each version
PATIENT = 1e3  # how many times slower a candidate may be on a busy machine


class Caller:
    """Somebody who asks the version in service all the time."""

    def __init__(self, url: str) -> None:
        self.said: Counter[str] = Counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, args=(url,))
        self._thread.start()

    def _ask(self, url: str) -> None:
        predictor = TritonPredictor(url, retries=0)
        image, answers = np.random.default_rng(0).integers(0, 256, (1, 128, 128, 3), dtype=np.uint8), set()
        while not self._stop.is_set():
            try:
                raw = predictor.predict(NetworkBatch(image, np.array([[128, 128]], np.int32), np.ones(1, np.float32)))
                answers.add(raw.panoptic.tobytes())
                self.said["answered"] += 1
            except InputError as error:
                self.said[str(error)] += 1
        predictor.close()
        self.said["different answers"] = len(answers)

    def stop(self) -> Counter[str]:
        self._stop.set()
        self._thread.join()
        return self.said


class Place:
    """A repository, the service that follows it, and a caller who asks it all the time."""

    def __init__(self, run: Path, folder: Path, server: TritonServer) -> None:
        self.run, self.folder, self.server = run, folder, server
        self.repository = server.repository
        self.health = f"{server.host}:{server.ports['metrics']}"
        self.shapes = run.parent / "shapes"
        self._number = 0

    def stage(self, change: candidates.Change | None = None, **manifest: Any) -> None:
        self._number += 1
        engine = candidates.make_engine(self.run, self.folder / f"engine{self._number}", change, **manifest)
        steps.stage(self.repository, engine_parts(engine))

    def gate(self, limits: GateLimits | None = None, **options: Any) -> GateResult:
        """On the photos that the network has learnt by heart, unless others are named."""
        if not options.keys() & {"gt_json", "photos"}:
            options["gt_json"] = self.shapes / "train.json"
        usual = {"seconds": SECONDS, "concurrency": 2, "max_latency_ratio": PATIENT}
        given = GateOptions(**(usual | options | {"limits": limits or GateLimits()}))
        return hold_gate(self.repository, read_record(self.repository), given, health=self.health)


@pytest.fixture(scope="module")
def place(tiny_run: Path, triton_environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("gate")
    repository = deploy_engine(tiny_run / "engine", folder / "repository")
    with TritonServer(repository, environment=triton_environment) as server:
        caller = Caller(server.url)
        yield Place(tiny_run, folder, server)
        said = caller.stop()
        assert set(said) == {"answered", "different answers"} and said["different answers"] == 1, said
        assert said["answered"] > 100
        told = ask_service(f"{server.host}:{server.ports['metrics']}")
        assert told is not None and told.serving == 1 and told.versions[1].restarts == 0


@pytest.fixture
def coded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """What is staged from now on has that code at the end of its model `upsnet`, or another one."""

    def put(code: str, model: str = MODEL) -> None:
        folder = candidates.make_template(tmp_path / "template", code, model)
        monkeypatch.setattr(repository_module, "TEMPLATE", folder)

    return put


def test_the_same_network_passes(place: Place) -> None:
    place.stage(candidates.another_word)
    result = place.gate()
    assert result.passed and result.reasons == [] and not result.private
    assert result.verdict is not None and result.verdict.identical == 1
    assert result.verdict.pq["All"].candidate == result.verdict.pq["All"].reference
    assert result.latency is not None and result.latency.candidate.answers > 0 and result.latency.candidate.failed == 0
    against = place.gate(against="onnxruntime", run=place.run, seconds=0)
    assert against.passed and against.verdict is not None and (against.verdict.identical or 0) > 0.999
    assert against.verdict.compared.startswith(f"PQ and identical pixels against ONNX Runtime of {place.run} on ")
    slow = place.gate(max_latency_ratio=1e-3)
    assert not slow.passed and all("with 2 callers it is slower: p" in reason for reason in slow.reasons)


def test_another_class_table_is_refused_by_name(place: Place) -> None:
    place.stage(**candidates.renamed(place.run))
    result = place.gate()
    name = candidates.renamed(place.run)["categories"][0].name
    assert len(result.reasons) == 1 and result.latency is None
    assert result.reasons[0].startswith("its class table is another: ")
    assert f"'{name}' (stuff) in the candidate, " in result.reasons[0] and "in version 1" in result.reasons[0]


def test_half_the_weights_zero_is_refused(place: Place) -> None:
    place.stage(candidates.half_the_weights_zero)
    result = place.gate()
    assert not result.passed and result.reasons[0].startswith("PQ falls by ")
    assert any(reason.startswith("classes that fall most, in PQ: ") for reason in result.reasons)
    assert any(reason.startswith("photos that agree least, in pixels: ") for reason in result.reasons)
    plain = place.gate(photos=place.shapes / "val")
    assert plain.reasons[0].partition(" of the pixels identical, needed 98 %")[1], plain.reasons


def test_a_broken_head_in_half_precision_is_refused(place: Place) -> None:
    place.stage(candidates.a_broken_head_in_half_precision, precision="fp16")
    result = place.gate()
    assert not result.passed and any(reason.startswith("PQ (things) falls by ") for reason in result.reasons)
    assert result.verdict is not None and result.verdict.pq["Things"].candidate == 0
    assert result.reasons[-1] == "it computes in fp16, version 1 in fp32"


def test_a_model_that_sleeps_is_refused(place: Place, coded: Callable[..., None]) -> None:
    coded(candidates.SLEEPS)
    place.stage(candidates.another_word)
    result = place.gate(GateLimits(seconds=2), photos=place.shapes / "val")
    assert not result.passed and "no answer within 2 s" in result.reasons[0], result.reasons


def test_a_model_that_dies_at_its_20th_request_is_refused(place: Place, coded: Callable[..., None]) -> None:
    coded(candidates.DIES_AT_THE_20TH)
    place.stage(candidates.another_word)
    result = place.gate(photos=place.shapes / "val")
    assert not result.passed, result
    # At its 20th, counted from its start: whoever asks it then.
    asked = r"photo \d of 4 \(.*\): |with 2 callers version \d+ failed at \d+ of \d+ requests: 0"
    assert re.match(
        rf"{asked}|the server of version \d+ did not last: the process of the model upsnet ", result.reasons[0]
    )


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (candidates.JUNK, r"as a photo, 1 of 4 \(.*\): its output coco_png is wrong: cannot identify image file"),
        (
            candidates.SWAPS,
            r"its photo model's answers agree in .* of \d photos when several are in one request, needed",
        ),
    ],
)
def test_a_photo_model_that_is_wrong_is_refused(
    code: str, words: str, place: Place, coded: Callable[..., None]
) -> None:
    coded(code, PHOTO_MODEL)
    place.stage(candidates.another_word)
    result = place.gate(photos=place.shapes / "val", seconds=0)
    assert result.verdict is not None and result.verdict.identical == 1
    assert len(result.reasons) == 1 and re.match(words, result.reasons[0]), result.reasons


def test_a_candidate_that_does_not_start_is_refused(place: Place, coded: Callable[..., None]) -> None:
    coded("\nraise RuntimeError('broken on purpose')\n")
    place.stage(candidates.another_word)
    result = place.gate()
    assert not result.passed and result.reasons[0].startswith("version ") and "does not start: " in result.reasons[0]


def test_without_a_service_the_gate_has_servers_of_its_own(place: Place) -> None:
    place.stage(candidates.another_word)
    options = GateOptions(photos=place.shapes / "val", seconds=0)
    result = hold_gate(place.repository, read_record(place.repository), options, health="127.0.0.1:9")
    assert result.passed and result.private and result.verdict is not None and result.verdict.identical == 1
