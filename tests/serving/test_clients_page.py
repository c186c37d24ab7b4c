"""docs/clients.md: its examples run against a real server, as they stand there."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serving.server import TritonServer
from tests.docs.pages import blocks
from upsnet.datasets.coco_format import read_panoptic_png

pytestmark = pytest.mark.triton
PAGE = Path(__file__).resolve().parents[2] / "docs/clients.md"
HEIGHT, WIDTH = 2100, 2200  # its labels pass gRPC's 4 MiB


@pytest.fixture
def examples(server: TritonServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Those of the page by language, for this server, in a folder with the photo that they name."""
    monkeypatch.chdir(tmp_path)
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:, WIDTH // 2 :, 0] = 255  # what the stand-in calls sky
    Image.fromarray(pixels).save("street.jpg", quality=95)
    found: dict[str, list[str]] = {}
    for block in blocks(PAGE.read_text()):
        text = block.text.replace("127.0.0.1:8001", server.url)
        found.setdefault(block.language, []).append(text.replace("127.0.0.1:8000", f"127.0.0.1:{server.ports['http']}"))
    return found


def test_grpc(examples: dict[str, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for example in examples["python"][:2]:
        exec(example, names)
    assert names["labels"].shape == (HEIGHT, WIDTH) and capsys.readouterr().out == "sky True\n"
    np.testing.assert_array_equal(read_panoptic_png("street.png"), names["labels"])


def test_versions(examples: dict[str, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for place in (0, 2):
        exec(examples["python"][place], names)
    assert capsys.readouterr().out == "sky True\n1\n['1']\n"


def test_http(examples: dict[str, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("geventhttpclient") is None:
        pytest.skip("needs tritonclient's HTTP (pip install 'tritonclient[http]')")
    exec(examples["python"][3], {})
    assert capsys.readouterr().out == "['sky']\n"


def test_curl(examples: dict[str, list[str]]) -> None:
    (script,) = examples["sh"]
    done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True, timeout=60)
    (output,) = json.loads(done.stdout)["outputs"]
    (segment,) = json.loads(output["data"][0])
    assert segment["name"] == "sky" and re.fullmatch(r"\d+", str(segment["area"]))
