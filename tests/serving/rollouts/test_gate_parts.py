"""The gate's parts, without a server: what it judges by, both versions under load, what is written down."""

from __future__ import annotations

import asyncio
import io
import json
import struct
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image
from tritonclient.grpc.service_pb2 import ModelInferRequest

from serving.load_test.questions import Answer, photo_question
from serving.repository import Parts
from serving.rollouts import steps
from serving.rollouts.answers import result_of
from serving.rollouts.gate import GateOptions, GateResult, _too_slow, hold_gate, open_photos
from serving.rollouts.latency import Latency, Side, Speed, compare_latency, read_some
from serving.rollouts.record import Record
from serving.rollouts.running import Running
from tests.folders import local
from upsnet.contract import LABELS, PHOTO_SIZES, SEGMENTS_JSON
from upsnet.errors import InputError, ServerError
from upsnet.parity.gate import GateLimits, judge
from upsnet.parity.photos import PlainPhotos

HEIGHT, WIDTH = 10, 20
SEGMENTS = [
    {"id": id, "category_id": 7 * id, "name": "x", "isthing": True, "score": 0.5, "area": 1, "box": [0, 0, 1, 1]}
    for id in (1, 2)
]


def answer_of(ids: np.ndarray, segments: list[dict[str, Any]] = SEGMENTS) -> Answer:
    told = json.dumps(segments).encode()
    sizes = np.array([ids.shape], np.int32)
    return {
        LABELS: ids.astype(np.uint8).tobytes(),
        PHOTO_SIZES: sizes.tobytes(),
        SEGMENTS_JSON: struct.pack("<I", len(told)) + told,
    }


def halves(pixels: int = 0) -> np.ndarray:
    """Two segments side by side; so many pixels of the first are the second's."""
    ids = np.repeat([1, 2], HEIGHT * WIDTH // 2)
    ids[:pixels] = 2
    return ids.reshape(HEIGHT, WIDTH)


class FakeServer:
    """By version: the seconds that an answer takes, and what comes of the requests after the first ones."""

    def __init__(self, alone: int, **then: Any) -> None:
        self._alone, self._then = alone, then
        self.deadline = 2.0
        self.asked: list[int] = []

    async def ask(self, message: bytes) -> Answer:
        version = ModelInferRequest.FromString(message).model_version
        self.asked.append(int(version))
        await asyncio.sleep(0.02 if version == "3" else 0.002)
        then = self._then.get(f"v{version}")
        if then is None or self.asked.count(int(version)) <= self._alone:
            return answer_of(halves())
        if isinstance(then, Exception):
            raise then
        return answer_of(halves(then))


PHOTOS = [("a.jpg", b"1"), ("b.jpg", b"2")]


def loaded(server: Any, seconds: float = 0.2) -> Latency:
    async def run() -> Latency:
        reference, candidate = (Side(server, version, PHOTOS) for version in (2, 3))
        await reference.ask_alone()
        await candidate.ask_alone()
        return await compare_latency(reference, candidate, concurrency=3, seconds=seconds)

    return asyncio.run(run())


def failing(words: str, status: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> grpc.aio.AioRpcError:
    metadata = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(status, metadata, metadata, words)


def test_both_are_loaded_by_turns() -> None:
    server = FakeServer(alone=2)
    latency = loaded(server)
    assert (latency.concurrency, latency.photos) == (3, 2)
    assert latency.reference.failed == latency.candidate.failed == 0 and latency.candidate.answers >= 5 * 3
    turns = [version for version, before in zip(server.asked, [0, *server.asked], strict=False) if version != before]
    assert turns == [2, 3, *[2, 3] * 3], "each alone, then five rounds, now one first, now the other"
    assert (latency.ratios["p50"] or 0) > 1


def test_a_slower_version_is_named_with_both_figures() -> None:
    def speed(p50: float, p95: float, answers: int = 40) -> Speed:
        return Speed(answers=answers, p50_ms=p50, p95_ms=p95, per_second=9, failed=0, said=[])

    latency = Latency(concurrency=4, photos=1, reference=speed(10, 20), candidate=speed(14, 40))
    assert latency.ratios == {"p50": 1.4, "p95": 2.0}
    words = "with 4 callers it is slower: p95 40.0 ms, of version 2 20.0 ms: 2.00 times, allowed 1.5"
    assert _too_slow(latency, 3, 2, 1.5) == [words]
    assert _too_slow(latency, 3, 2, 2) == []
    few = latency.model_copy(update={"candidate": speed(14, 40, answers=39)})
    assert _too_slow(few, 3, 2, 1.5) == [] and len(_too_slow(few, 3, 2, 1.3)) == 1


def test_an_answer_that_fails_under_load_is_a_reason() -> None:
    latency = loaded(FakeServer(alone=4, v3=failing("the server stops or restarts; retry")))
    assert latency.candidate.failed > 0 and latency.reference.failed == 0
    (reason,) = _too_slow(latency, 3, 2, 1000)
    assert reason.startswith(f"with 3 callers version 3 failed at {latency.candidate.failed} of ")
    assert ".jpg: the server stops or restarts; retry (" in reason
    late = loaded(FakeServer(alone=2, v3=failing("Deadline Exceeded", grpc.StatusCode.DEADLINE_EXCEEDED)))
    assert ".jpg: no answer within 2 s (" in _too_slow(late, 3, 2, 1000)[0]


def test_answers_that_differ_under_load_are_a_reason_beyond_rounding() -> None:
    latency = loaded(FakeServer(alone=2, v3=2))  # 1 % of the pixels
    assert latency.candidate.failed == 0 and latency.candidate.identical == pytest.approx(0.99)
    assert latency.reference.identical == 1 and latency.reference.worst == "" and _too_slow(latency, 3, 2, 1e3) == []
    latency = loaded(FakeServer(alone=2, v3=20))
    assert latency.candidate.identical == pytest.approx(0.9)
    assert _too_slow(latency, 3, 2, 1e3) == [
        "with 3 callers 90.000 % of the pixels are what they are alone, needed 98 %: least of a.jpg"
    ]


def test_a_version_in_service_that_fails_is_no_reason_against_the_candidate() -> None:
    with pytest.raises(ServerError, match=r"version 2, which serves, fails itself: .*: gone"):
        _too_slow(loaded(FakeServer(alone=2, v2=failing("gone"))), 3, 2, 1000)


def test_a_photo_that_fails_alone_is_named() -> None:
    side = Side(FakeServer(alone=1, v3=failing("Stub process is not healthy")), 3, PHOTOS)  # type: ignore[arg-type]
    with pytest.raises(ServerError, match=r"^photo 2 of 2 \(b\.jpg\): Stub process is not healthy$"):
        asyncio.run(side.ask_alone())


def test_a_photo_that_the_version_in_service_refuses_is_left_out() -> None:
    class Refusing(FakeServer):
        async def ask(self, message: bytes) -> Answer:
            if message == photo_question("a.jpg", [b"1"], version=2).message:
                raise failing("photo: 40 MB are over the limit", grpc.StatusCode.INVALID_ARGUMENT)
            return await super().ask(message)

    side: Any = Side(Refusing(alone=9), 2, PHOTOS)  # type: ignore[arg-type]
    assert len(asyncio.run(side.ask_alone(may_refuse=True))) == 1 and side.names == ["b.jpg"]
    with pytest.raises(ServerError, match=r"photo 1 of 2 \(a\.jpg\): photo: 40 MB are over the limit"):
        asyncio.run(Side(Refusing(alone=9), 2, PHOTOS).ask_alone())  # type: ignore[arg-type]


def test_an_answer_becomes_a_result() -> None:
    result = result_of(answer_of(halves(3)))
    assert (result.ids == halves(3)).all() and [each.category for each in result.segments] == [7, 14]
    for damage in ({LABELS: b"1"}, {SEGMENTS_JSON: b"\1"}, {PHOTO_SIZES: b""}):
        with pytest.raises(InputError, match="the server's answer is none to a photo"):
            result_of(answer_of(halves()) | damage)


def test_the_load_is_of_photos_from_all_over(tmp_path: Path) -> None:
    for number in range(30):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number:02}.png")
    some = read_some(PlainPhotos(tmp_path), 4)
    assert [name for name, _ in some] == ["00.png", "09.png", "19.png", "29.png"]
    assert Image.open(io.BytesIO(some[1][1])).getpixel((0, 0)) == (9, 0, 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "nothing to judge by: give a data set"),
        ({"photos": "photos", "gt_json": "val.json"}, "not both"),
        ({"photos": "nowhere"}, "nowhere: no such file"),
        ({"gt_json": "nowhere.json"}, "nowhere.json: "),
        ({"run": "nowhere"}, "no data set: give --gt-json"),
    ],
)
def test_what_it_judges_by_is_asked_for_in_one_line(options: dict[str, str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        open_photos(GateOptions(**{name: Path(value) for name, value in options.items()}))


def test_a_data_set_and_the_runs_own(gt_json: Path, tmp_path: Path) -> None:
    found = open_photos(GateOptions(gt_json=gt_json, limit=3))
    assert len(found) == 3 and found.dataset is not None and local(found.file(0)).name == "000.png"
    data = {
        "json_file": str(gt_json),
        "segments": str(gt_json.with_name("panoptic_val")),
        "images": str(gt_json.with_name("val")),
    }
    (tmp_path / "config.yaml").write_text(json.dumps({"data": {"val": data}}))
    assert len(open_photos(GateOptions(run=tmp_path))) == 5


def test_nobody_waits_for_a_candidate_that_is_none_any_more(
    repository: Path, parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = steps.stage(repository, parts)

    class Starting:
        health, private = "somewhere", True

        def told(self) -> Running:
            steps.stage(repository, parts)
            return Running(rollouts=record.id, serving=1, ports={}, versions={})

    monkeypatch.setattr("serving.rollouts.gate.open_service", lambda *_: nullcontext(Starting()))
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"meanwhile .* made another step \(stage, version 3\)"):
        hold_gate(repository, record, GateOptions(photos=tmp_path))


def test_what_is_told_and_what_is_kept(gt_json: Path, fake: Any) -> None:
    photos = open_photos(GateOptions(gt_json=gt_json))
    verdict = judge(fake("a", damage=((48, 60), 0.125)), fake("b"), photos, GateLimits(max_pq_drop=0.5))
    result = GateResult(
        passed=True, reasons=[], verdict=verdict, latency=loaded(FakeServer(alone=2)), seconds=1.0, private=False
    )
    assert result.lines[0].startswith("compared: PQ against the version in service on 5 photos of ")
    assert result.lines[1].startswith("PQ: 9") and "identical pixels: 97.377 % (told, not asked for)" in result.lines
    assert result.lines[-1].startswith("latency with 3 callers: p50 ")
    kept = json.loads(json.dumps(result.figures))
    assert kept["classes"].keys() == {"sky"} and kept["photos"] == {"003.png": 0.875}
    assert kept["pq"]["All"]["candidate"] < kept["pq"]["All"]["reference"] and kept["latency"]["ratio"]["p50"] > 1
    nothing = GateResult(passed=False, reasons=["x"], seconds=1.0, private=True)
    assert nothing.lines == ["no photo was compared, or not all of them could be"] and nothing.figures == {
        "private_servers": True
    }


def test_another_reference_needs_its_run(tmp_path: Path) -> None:
    record = Record(served=(1,), candidate=2)
    for options, words in (
        (GateOptions(against="pytorch"), "--against pytorch needs --run, the run that it opens"),
        (GateOptions(against="caffe", run=tmp_path), "unknown runtime 'caffe'"),
    ):
        with pytest.raises(InputError, match=words):
            hold_gate(tmp_path, record, options)
    with pytest.raises(InputError, match="has no candidate; `upsnet deploy stage` puts one there"):
        hold_gate(tmp_path, Record(served=(1,)), GateOptions())
