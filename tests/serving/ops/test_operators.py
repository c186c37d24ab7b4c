"""The operators' port: what is told is true."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from serving.backend import State
from tests.serving.ops.fakes import TRITON_METRICS, Front
from upsnet.errors import InputError


@pytest.mark.parametrize(("state", "status"), [(state, 200 if state == State.READY else 503) for state in State])
def test_health(tmp_path: Path, state: State, status: int) -> None:
    async def run() -> None:
        async with Front(tmp_path) as front:
            front.backend.health = front.backend.health._replace(state=state, reasons=("the stub is dead",))
            code, _, body = await front.ask("GET /health HTTP/1.1", port="metrics")
            told = json.loads(body)
            assert (code, told["state"], told["reasons"]) == (status, state, ["the stub is dead"])
            assert told["since"] == "2023-11-14T22:13:20.000+00:00"
            assert (told["restarts"], told["model_sha256"]) == (2, "ab" * 32)
            assert told["memory_bytes"] == {"server": 100, "upsnet": 200}
            assert (await front.ask("GET /health/ready HTTP/1.1", port="metrics"))[0] == status
            assert (await front.ask("GET /health/live HTTP/1.1", port="metrics"))[0] == 200

    asyncio.run(run())


def test_metrics_are_ours_and_tritons(tmp_path: Path) -> None:
    async def run() -> None:
        async with Front(tmp_path) as front:
            code, headers, body = await front.ask("GET /metrics HTTP/1.1", port="metrics")
            text = body.decode()
            assert code == 200 and headers["Content-Type"].startswith("text/plain; version=0.0.4")
            assert text.startswith(TRITON_METRICS) and headers["Server"] == "upsnet"
            assert 'upsnet_state{state="ready"} 1.0' in text and 'upsnet_state{state="degraded"} 0.0' in text
            assert "upsnet_triton_restarts_total 2.0" in text
            assert 'upsnet_resident_memory_bytes{process="upsnet"} 200.0' in text
            assert f'sha256="{"ab" * 32}"' in text

    asyncio.run(run())


@pytest.mark.parametrize("fault", ["gone", "silent", "half a line"])
def test_metrics_without_triton(tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.front.scrape.SCRAPE_SECONDS", 0.2)

    async def run() -> None:
        async with Front(tmp_path) as front:
            if fault == "gone":
                (tmp_path / "m").unlink()
            elif fault == "silent":
                await front.triton.__aexit__()
                await asyncio.start_unix_server(lambda reader, writer: asyncio.sleep(60), tmp_path / "m")
            else:
                front.triton.metrics = "nv_inference_co"
            for count in (1, 2):
                code, _, body = await front.ask("GET /metrics HTTP/1.1", port="metrics")
                assert code == 200 and b"nv_" not in body
                assert f"upsnet_triton_scrape_failures_total {count}.0" in body.decode()

    asyncio.run(run())


def test_other_calls(tmp_path: Path) -> None:
    async def run() -> None:
        async with Front(tmp_path) as front:
            assert (await front.ask("GET /v2 HTTP/1.1", port="metrics"))[0] == 404
            code, headers, _ = await front.ask("POST /metrics HTTP/1.1\nContent-Length: 0", port="metrics")
            assert code == 405 and headers["Allow"] == "GET, HEAD"
            code, headers, body = await front.ask("HEAD /health HTTP/1.1", port="metrics")
            assert code == 200 and body == b"" and int(headers["Content-Length"]) > 0

    asyncio.run(run())


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    async def run() -> None:
        async with Front(tmp_path) as front:
            (tmp_path / "other").mkdir()
            other = Front(tmp_path / "other", http_port=front.ports["http"])
            with pytest.raises(InputError, match=rf"^--http-port {front.ports['http']}: 127.0.0.1 cannot be .* or 0$"):
                await other.front.start()

    asyncio.run(run())
