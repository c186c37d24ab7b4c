"""The probe of the deployments, through the front: it sends a photo, and believes nothing else."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from aiohttp import web
from PIL import Image

from serving.record import Outcome
from tests.deploy.manifests import CONTAINER
from tests.serving.ops.fakes import Front

WELL = {"outputs": [{"name": "segments_json", "datatype": "BYTES", "shape": [1, 1], "data": ['[{"id": 1}]']}]}


async def probe(url: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", CONTAINER / "probe.py", url, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    return process.returncode, out.decode()


@pytest.mark.parametrize(
    ("status", "content", "told"),
    [
        (200, json.dumps(WELL), (0, "well: 1 segments\n")),
        (200, "{}", (1, "no answer: 'outputs'\n")),
        (200, "<html>", (1, "no answer: ")),
        (500, '{"error": "Stub process is not healthy"}', (1, '503: {"error": ')),
    ],
)
def test_probe(status: int, content: str, told: tuple[int, str], tmp_path: Path) -> None:
    async def run() -> None:
        async with Front(tmp_path) as front:
            front.triton.reply = web.Response(status=status, text=content)
            code, out = await probe(f"http://127.0.0.1:{front.ports['http']}")
            assert code == told[0] and out.startswith(told[1]) and out.count("\n") == 1
            _, path, headers, body = front.triton.seen[0]
            assert path == "/v2/models/upsnet_photo/infer"
            photo = body[int(headers["Inference-Header-Content-Length"]) :]
            assert struct.unpack("<I", photo[:4])[0] == len(photo) - 4
            with Image.open(io.BytesIO(photo[4:])) as image:
                assert image.size == (1, 1) and image.convert("RGB").getpixel((0, 0)) == (128, 128, 128)
            record = front.telemetry.records[0]
            assert record.photos == 1 and (record.outcome == Outcome.OK) == (status == 200)

    asyncio.run(run())


def test_nothing_listens() -> None:
    code, out = asyncio.run(probe("http://127.0.0.1:1"))
    assert code == 1 and out.startswith("no answer")


def test_a_server_with_too_much_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is not ready, but alive, as long as it has answered anybody since the last time."""
    spec = importlib.util.spec_from_file_location("probe_of_the_container", CONTAINER / "probe.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SECONDS", 0.3)
    done, count = threading.Event(), [0]

    class Busy(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            done.wait(20)

        def do_GET(self) -> None:
            name = "nv_inference_request_success"
            text = f'# TYPE {name} counter\n{name}{{model="upsnet_photo",version="1"}} {count[0]}\nnv_other{{}} 7\n'
            self.send_response(200 if count[0] else 404)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"

        def probed(answered: int, *more: str) -> tuple[int, str]:
            count[0] = answered
            return module.main(url, *more), capsys.readouterr().out

        alive = (f"{url}/metrics", str(tmp_path / "answered"))
        well, nobody = (
            (0, "busy: no answer within 0.3 s, but 3 others since the last time\n"),
            (1, "no answer within 0.3 s\n"),
        )
        try:
            assert probed(5, *alive) == nobody  # for the first time: since when is not known
            assert probed(8, *alive) == well and probed(8, *alive) == nobody and probed(11, *alive) == well
            assert probed(14) == nobody  # ready it is not
            assert probed(0, *alive) == nobody and probed(14, *alive) == well  # it did not tell its metrics
            assert probed(2, *alive) == nobody and probed(5, *alive) == well  # it has begun anew
            (tmp_path / "answered").unlink()
            (tmp_path / "answered").mkdir()
            assert probed(9, *alive) == probed(20, *alive) == nobody  # nothing can be remembered
        finally:
            done.set()
            server.shutdown()
