"""`upsnet viewer --run`: a real server of a run beside the page, for as long as there is the page."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from upsnet.viewer.own_server import nothing_listens

pytestmark = pytest.mark.triton


def ask(url: str, content: bytes | None = None) -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, content), timeout=60) as answer:
        return json.load(answer)


def test_a_run_is_served_and_compared_until_the_viewer_is_killed(
    tiny_run: Path, triton_environment: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    photo = next((tiny_run.parent / "shapes/val").glob("*.png")).read_bytes()
    with socket.create_server(("127.0.0.1", 0)) as free:
        where = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "upsnet", "viewer", "--run", str(run), "--url", where, "--port", "0"]
    said = tmp_path / "stderr"
    with (
        said.open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as viewer,
    ):
        try:
            assert viewer.stdout is not None
            lines = iter(viewer.stdout.readline, "")
            assert next(lines) == f"No server answers at {where}: starting one for {run}.\n"
            page = next(line for line in lines if line.startswith("http://")).split()[0]
            assert '"level"' not in said.read_text(), (
                "a server that starts, and is asked whether it is ready, is no error"
            )
            told = ask(f"{page}api/models")["models"]
            assert [(each["id"], each["state"]) for each in told[:2]] == [("s0", "ready"), ("m0", "waiting")]
            assert [each["title"] for each in told] == [f"Triton at {where}", "ONNX Runtime, run", "PyTorch, run"]
            given = f"{page}api/photos/{ask(f'{page}api/photos', photo)['id']}"
            stages = [stage["name"] for stage in ask(f"{given}/answers?model=s0", b"")["stages"]]
            assert stages == ["waiting", "decode", "resize", "network", "restore", "queue, transport", "packing"]
            assert ask(f"{given}/answers?model=m0", b"")["segments"]
            assert ask(f"{given}/difference?a=s0&b=m0")["differing"] == 0
        finally:
            viewer.kill()
    until = time.monotonic() + 30
    while not nothing_listens(where):  # the server ends with it
        assert time.monotonic() < until
        time.sleep(0.2)
