"""docs/cpp.md: its program is built and run, and gives the same bytes as Python."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from upsnet.geometry import collate, to_network
from upsnet.kernels.building import find_library
from upsnet.photos import read_photo
from upsnet.runtimes.onnx_runtime import OnnxRuntimePredictor

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "cpp.md"
ONNX_RUNTIME = ROOT / "build" / "onnxruntime"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as the page says."""
    if not (ONNX_RUNTIME / "include" / "onnxruntime_cxx_api.h").is_file():
        pytest.skip("no C++ headers of ONNX Runtime: `make onnxruntime-cpp` was not run")
    folder = tmp_path_factory.mktemp("cpp")
    cmake = shutil.which("cmake") or str(Path(sys.executable).with_name("cmake"))
    configure = [cmake, "-S", str(ROOT / "docs/examples/cpp"), "-B", str(folder), f"-DCMAKE_PREFIX_PATH={ONNX_RUNTIME}"]
    for command in (configure, [cmake, "--build", str(folder)]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "panoptic"


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)


def network_photo(photo: Path, run_folder: Path, ppm: Path) -> str:
    """What the page's Python prints; it writes `ppm`."""
    (script,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    command = [sys.executable, "-c", script, str(photo), str(run_folder / "model.manifest.json"), str(ppm)]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()


def in_python(model: Path, photo: Path) -> tuple[np.ndarray, np.ndarray]:
    """The panoptic map of the photo at the network's size, and its segments, with the same library."""
    predictor = OnnxRuntimePredictor(model, kernels="auto")
    net = to_network(read_photo(photo), predictor.manifest.resize)
    panoptic, segments, counts = predictor.predict(collate([net]))
    return panoptic[0, : net.size[0], : net.size[1]], segments[0, : counts[0]]


@pytest.mark.parametrize("size", [(96, 128), (170, 130)])
def test_the_same_bytes_as_python(size: tuple[int, int], program: Path, tiny_run: Path, tmp_path: Path) -> None:
    """A photo of the network's size; one that is resized to 126 x 96, so that scale and padding count."""
    learnt = sorted((tiny_run.parent / "shapes" / "train").iterdir())[0]
    photo, ppm, pgm, model = (
        tmp_path / "photo.png",
        tmp_path / "photo.ppm",
        tmp_path / "map.pgm",
        tiny_run / "model.onnx",
    )
    Image.open(learnt).convert("RGB").resize(size[::-1]).save(photo)
    scale = network_photo(photo, tiny_run, ppm)
    done = run(program, model, find_library("onnxruntime"), ppm, pgm, scale)
    assert (done.returncode, done.stderr) == (0, "")
    panoptic, segments = in_python(model, photo)
    assert pgm.read_bytes() == b"P5\n%d %d\n255\n" % panoptic.shape[::-1] + panoptic.tobytes()
    assert len(segments) > 1 and set(np.unique(panoptic)) >= {1, 2}
    lines = [
        f"category {category:g}, score {score:.6g}, {area:.6g} pixels" for category, score, area in segments[:, :3]
    ]
    assert done.stdout.splitlines() == lines


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"P5 2 2 255 ....", "the photo is no 8-bit PPM"),
        (b"P6 2 2 255 ...........", "the photo ends too early"),
        (b"P6\n# by a program\n# 2 3\n2 2 # sides\n255\n...........", "the photo ends too early"),
        (b"P6\n# and no more", "the photo is no 8-bit PPM"),
    ],
)
def test_errors_are_one_line(content: bytes, message: str, program: Path, tmp_path: Path) -> None:
    (tmp_path / "photo.ppm").write_bytes(content)
    done = run(program, "model.onnx", find_library("onnxruntime"), tmp_path / "photo.ppm", tmp_path / "map.pgm")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"error: {message}\n")
    for scale in ("fast", "1x", "nan", "0", ""):
        done = run(program, "model.onnx", "library.so", tmp_path / "photo.ppm", tmp_path / "map.pgm", scale)
        assert (done.returncode, done.stderr) == (1, f"error: SCALE is '{scale}', not a number above 0\n")
    assert run(program).stderr == "error: wanted: MODEL.onnx LIBRARY.so PHOTO.ppm MAP.pgm [SCALE]\n"
