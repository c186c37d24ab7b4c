"""Metrics, log lines and spans of requests whose story is known."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import generate_latest

from serving.front.telemetry import ServiceTelemetry, make_telemetry
from serving.front.tracing import Tracing
from serving.record import Outcome, Record
from upsnet.errors import InputError

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def record(**changes: object) -> Record:
    """Two photos, 0.25 s in the queue and 0.5 s with Triton, of 1 s."""
    made = Record("grpc", "ModelInfer", "me", f"00-{TRACE}-{PARENT}-01", "upsnet", "3", photos=2, pixels=600)
    made.started, made.queued, made.served, made.total = 1.7e9, 0.25, 0.5, 1.0
    made.bytes_in, made.bytes_out = 1000, 50
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def test_metrics_of_requests() -> None:
    telemetry = make_telemetry(None, None)
    value = telemetry.registry.get_sample_value
    busy = {"protocol": "http", "method": "ModelInfer", "model": "upsnet_photo", "outcome": "busy"}
    assert value("upsnet_requests_total", busy) == 0  # before the first, so that a rate sees it
    telemetry.finish(record())
    telemetry.finish(record(protocol="http", model="upsnet_photo", outcome=Outcome.BUSY))
    assert value("upsnet_requests_total", busy) == 1
    assert value("upsnet_photos_total", {"model": "upsnet"}) == 2
    assert value("upsnet_pixels_total", {"model": "upsnet"}) == 600
    assert value("upsnet_received_bytes_total", {"protocol": "grpc"}) == 1000
    for name, seconds in (("queue", 0.25), ("service", 0.5), ("request", 1.0)):
        assert value(f"upsnet_{name}_seconds_sum", {"model": "upsnet"}) == seconds
        assert value(f"upsnet_{name}_seconds_count", {"model": "upsnet_photo"}) is None  # it got no answer
    assert value("upsnet_request_photos_bucket", {"model": "upsnet", "le": "1.0"}) == 0
    assert value("upsnet_request_photos_bucket", {"model": "upsnet", "le": "2.0"}) == 1
    telemetry.close()


def test_what_callers_make_up_is_no_label() -> None:
    telemetry = make_telemetry(None, None)
    for i in range(3):
        telemetry.finish(record(model=f"m{i}\n", method=f"Call{i}", outcome=Outcome.FORBIDDEN))
    size = len(generate_latest(telemetry.registry))
    telemetry.finish(record(model="m3", method="Call3", outcome=Outcome.FORBIDDEN))
    assert len(generate_latest(telemetry.registry)) == size
    labels = {"protocol": "grpc", "method": "other", "model": "other", "outcome": "forbidden"}
    assert telemetry.registry.get_sample_value("upsnet_requests_total", labels) == 4
    telemetry.close()


def test_a_line_a_request(tmp_path: Path) -> None:
    log = tmp_path / "new folder/access.jsonl"
    telemetry = make_telemetry(log, None)
    telemetry.finish(record())
    telemetry.finish(
        record(
            request_id='x"\r\n{"level": "info"}\u2028\x1b[2J',
            message="y" * 10_000,
            outcome=Outcome.FAILED,
            traceparent="z",
        )
    )
    telemetry.close()
    first, second = lines(log)
    assert first == {
        "time": "2023-11-14T22:13:20.000+00:00",
        "level": "info",
        "request_id": "me",
        "protocol": "grpc",
        "method": "ModelInfer",
        "model": "upsnet",
        "model_version": "3",
        "outcome": "ok",
        "message": "",
        "queued_ms": 250.0,
        "served_ms": 500.0,
        "total_ms": 1000.0,
        "bytes_in": 1000,
        "bytes_out": 50,
        "photos": 2,
        "pixels": 600,
        "trace_id": TRACE,
    }
    assert (second["level"], second["trace_id"]) == ("error", None)
    text = log.read_text()
    assert text.isascii() and "\x1b" not in text and len(text.splitlines()) == 2 and len(text) < 3000


def test_stderr_has_what_is_the_servers_fault(capsys: pytest.CaptureFixture[str]) -> None:
    for path, wanted in ((None, ["failed"]), (Path("-"), ["ok", "invalid", "failed"])):
        telemetry = make_telemetry(path, None)
        for outcome in (Outcome.OK, Outcome.INVALID, Outcome.FAILED):
            telemetry.finish(record(outcome=outcome))
        telemetry.close()
        assert [json.loads(line)["outcome"] for line in capsys.readouterr().err.splitlines()] == wanted


def test_a_log_that_was_moved_away(tmp_path: Path) -> None:
    log = tmp_path / "access.jsonl"
    telemetry = make_telemetry(log, None)
    telemetry.finish(record(request_id="before"))
    while not log.read_text():
        time.sleep(0.01)
    log.rename(tmp_path / "access.1")
    telemetry.finish(record(request_id="after"))
    telemetry.close()
    assert [lines(tmp_path / name)[0]["request_id"] for name in ("access.1", "access.jsonl")] == ["before", "after"]


@pytest.mark.parametrize("fault", ["a full disk", "its folder is gone"])
def test_a_log_that_cannot_be_written(tmp_path: Path, fault: str, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "logs"
    telemetry = make_telemetry(Path("/dev/full") if fault == "a full disk" else folder / "log", None)
    if fault == "its folder is gone":
        (folder / "log").unlink()
        folder.rmdir()
    for _ in range(50):
        telemetry.finish(record())
    telemetry.close()
    assert telemetry.registry.get_sample_value("upsnet_log_lines_lost_total") == 50
    assert capfd.readouterr().err == ""


def test_a_log_that_nobody_reads() -> None:
    """A pipe that is full keeps its writer waiting, and nobody else."""
    reader, writer = os.pipe()
    telemetry = make_telemetry(Path(f"/proc/self/fd/{writer}"), None)
    for _ in range(11_000):
        telemetry.finish(record())
    telemetry.close()
    lost = telemetry.registry.get_sample_value("upsnet_log_lines_lost_total")
    assert lost is not None and lost > 0
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("path", ["/proc/no/log", "."])
def test_a_log_that_is_no_use(path: str) -> None:
    with pytest.raises(InputError, match="cannot be written: "):
        make_telemetry(Path(path), None)


def test_spans() -> None:
    exporter = InMemorySpanExporter()
    telemetry = ServiceTelemetry(None, Tracing(SimpleSpanProcessor(exporter)))
    telemetry.finish(record(outcome=Outcome.INVALID, message="images: 0 rows"))
    queue, triton, server = exporter.get_finished_spans()
    assert (queue.name, triton.name) == ("queue", "triton")
    assert (server.name, server.kind) == ("inference.GRPCInferenceService/ModelInfer", SpanKind.SERVER)
    assert server.context and server.parent and server.attributes
    assert f"{server.context.trace_id:032x}" == TRACE and f"{server.parent.span_id:016x}" == PARENT
    assert queue.parent == triton.parent == server.context
    second = 10**9
    begun = 1_700_000_000 * second
    assert (server.start_time, server.end_time) == (begun, begun + second)
    assert (queue.start_time, queue.end_time) == (begun + second // 4, begun + second // 2)
    assert (triton.start_time, triton.end_time) == (begun + second // 2, begun + second)
    assert (server.status.status_code, server.status.description) == (StatusCode.ERROR, "images: 0 rows")
    assert server.attributes["error.type"] == "invalid" and server.attributes["upsnet.photos"] == 2
    telemetry.close()


@pytest.mark.parametrize("traceparent", [None, "", "garbage", f"00-{'0' * 32}-{PARENT}-01"])
def test_a_trace_of_its_own(traceparent: str | None, tmp_path: Path) -> None:
    exporter = InMemorySpanExporter()
    telemetry = ServiceTelemetry(tmp_path / "log", Tracing(SimpleSpanProcessor(exporter)))
    telemetry.finish(record(traceparent=traceparent))
    telemetry.close()
    server = exporter.get_finished_spans()[-1]
    assert server.parent is None and server.context
    assert lines(tmp_path / "log")[0]["trace_id"] == f"{server.context.trace_id:032x}" != TRACE


@pytest.mark.parametrize("kind", ["closed", "silent"])
def test_an_endpoint_that_does_not_answer(kind: str) -> None:
    """Nothing waits for it: neither a request nor, for longer than a few seconds, the end."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if kind == "silent":
            listener.listen()
        telemetry = make_telemetry(None, f"http://127.0.0.1:{listener.getsockname()[1]}")
        begun = time.monotonic()
        for _ in range(5000):  # more than its queue holds
            telemetry.finish(record())
        telemetry.close()
        assert time.monotonic() - begun < 20  # a guard: an export that fails may take 10 s for each batch


@pytest.mark.parametrize("endpoint", ["localhost:4317", "ftp://x", "http://", "http://a/b"])
def test_an_endpoint_that_is_none(endpoint: str) -> None:
    with pytest.raises(InputError, match=r"^--otlp-endpoint .*: give http://HOST:4317"):
        make_telemetry(None, endpoint)
