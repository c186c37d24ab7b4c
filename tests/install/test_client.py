"""`pip install 'upsnet-trt[onnxruntime]'` and `[triton]`: predictions and their PQ, from any folder."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.repository import deploy
from serving.server import TritonServer
from tests.install.conftest import ROOT, Installed
from tests.serving.conftest import Exported

SIZE_MB = {"onnxruntime": 330, "triton": 250}  # with pip; CMake is 86 of the first
# The fakes of TensorRT need the package onnx, as the workshop does; other extras are those of test_many_photos.py.
WORKSHOP_IMPORT = re.compile(
    r"^(from|import) (torch|yaml|onnx|plugins_cuda|training|export|serving|eval)\b"
    r"|^(from|import) tests\.(upsnet\.tensorrt|browser)\b"
    r"|^(from|import) (ray|fsspec|pyarrow|webdataset|moto|boto3|botocore)\b",
    re.MULTILINE,
)


def photo(folder: Path) -> Path:
    """Left half dark, right half red: the stand-in's void, and its first segment."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, 30:, 0] = 255
    Image.fromarray(pixels).save(folder / "photo.png")
    return folder / "photo.png"


def check_predictions(out: Path) -> None:
    predictions = json.loads((out / "predictions.json").read_text())
    (annotation,) = predictions["annotations"]
    assert [segment["category_id"] for segment in annotation["segments_info"]] == [1]
    ids = np.asarray(Image.open(out / "predictions" / annotation["file_name"]))
    assert ids.shape[:2] == (40, 60) and not ids[:, :29].any() and ids[:, 31:].any(-1).all()
    assert (out / "photo_overlay.jpg").is_file()


def test_onnxruntime_and_pq(client: Installed, exported: Exported) -> None:
    assert client.size < SIZE_MB["onnxruntime"] * 1e6
    client.upsnet("predict", photo(client.work), "--model", exported.model, "--out", "out")
    out = client.work / "out"
    check_predictions(out)
    table, _ = client.upsnet("pq", "--gt-json", out / "predictions.json", "--pred-json", out / "predictions.json")
    assert "100.0" in table


@pytest.mark.triton
def test_triton(triton_client: Installed, exported: Exported, triton_environment: Path, tmp_path: Path) -> None:
    assert triton_client.size < SIZE_MB["triton"] * 1e6
    repository = deploy(exported.model, exported.manifest_path, tmp_path / "repository")
    with TritonServer(repository, environment=triton_environment) as server:
        triton_client.upsnet(
            *("predict", photo(triton_client.work), "--runtime", "triton", "--url", server.url, "--out", "out")
        )
    check_predictions(triton_client.work / "out")


def test_the_librarys_own_tests(client: Installed, wheel: Path) -> None:
    """Those of tests/upsnet that need nothing of the workshop, on the checkout's upsnet/."""
    files = sorted((ROOT / "tests/upsnet").rglob("test_*.py"))
    free = [file for file in files if not WORKSHOP_IMPORT.search(file.read_text())]
    assert len(free) > len(files) / 2
    client.add(f"{wheel}[triton,video,pull,data,test]")
    shared = {name: value for name, value in os.environ.items() if name == "UPSNET_SHARED"}
    output, _ = client.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *free, cwd=ROOT, variables=shared)
    assert re.search(r"\d{3} passed", output), output
