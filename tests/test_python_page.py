"""docs/python.md: its examples run, as they stand there."""

from __future__ import annotations

import re
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import upsnet
from tests.upsnet.datasets.conversion.labelme_writer import label, shape
from upsnet.model import Model
from upsnet.video import VideoWriter

PAGE = Path(__file__).resolve().parent.parent / "docs" / "python.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
SERVER = "127.0.0.1:8001"  # tests/serving/test_load.py runs that example


def run(block: str, names: dict[str, Any]) -> None:
    line = PAGE.read_text(encoding="utf-8").partition(block)[0].count("\n")
    exec(compile("\n" * line + block, str(PAGE), "exec"), names)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the photos that the page names, as the current one."""
    monkeypatch.chdir(tmp_path)
    photos = {
        "street.jpg": (96, 128),
        "beach.png": (128, 96),
        "holiday/a.jpg": (96, 96),
        "holiday/day 2/b.png": (90, 90),
    }
    for seed, (name, size) in enumerate(photos.items()):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(name)
    label(Path("labelme/a.json"), shape("sky", [[0, 0], [96, 0], [96, 40]]), imageWidth=96, imageHeight=96)
    shutil.copyfile("holiday/a.jpg", "labelme/a.jpg")
    return tmp_path


def test_the_examples_run(workplace: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("av", reason="needs PyAV (pip install -e '.[video]')")
    street = sorted((tiny_run.parent / "shapes" / "train").iterdir())[0]  # one that it has learnt by heart
    Image.open(street).convert("RGB").save("street.jpg", quality=95)
    shutil.copytree(tiny_run, "runs/demo")
    with VideoWriter("clip.mp4", Fraction(10)) as writer:
        for _ in range(2):
            writer.add(upsnet.read_photo("street.jpg"))
    names: dict[str, Any] = {}
    for block in BLOCKS:
        if SERVER not in block and "supervision" not in block:
            run(block, names)
    printed = capsys.readouterr().out
    assert "<PanopticPrediction of street.jpg, " in printed and "clip.mp4, frame 2\n" in printed
    assert printed.endswith("sreet.jpg: no such file\n")
    written = sorted(path.as_posix() for path in Path().rglob("*.png") if "out" in str(path))
    assert written == [
        "holiday_out/predictions/a.png",
        "holiday_out/predictions/day 2/b.png",
        "out/predictions/street.png",
    ]
    assert Path("street_overlay.png").is_file()


def test_the_example_of_supervision_runs(fake: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("supervision", reason="needs the package supervision")
    from tests.conftest import photo_of, scene

    (block,) = (block for block in BLOCKS if "supervision" in block)
    run(block, {"prediction": Model(fake("x")).predict(photo_of(scene(0)))})
    assert "'cat' 'cat'" in capsys.readouterr().out


def test_old_names_point_to_names_that_are_there() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("## Where old names went")[2]
    for name in re.findall(r"`(upsnet\.[\w.]+)", table):
        module, _, attribute = name.rpartition(".")
        __import__(module)
        value = __import__(module, fromlist=[attribute])
        assert hasattr(value, attribute), name
