from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.serving.conftest import Exported
from tests.serving.soak.__main__ import soak_service
from tests.serving.soak.hostile import ACTIONS
from tests.serving.soak.service import serving
from tests.serving.soak.soak import Memory, SoakReport, growth
from upsnet.contract import METADATA_KEY

SIZES = (40, 30), (64, 64), (30, 90), (128, 96)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(len(SIZES))]
    for path, (width, height) in zip(paths, SIZES, strict=True):
        coarse = rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height)).save(path)
    return paths


@pytest.fixture
def described(exported: Exported, tmp_path: Path) -> Path:
    """The stand-in, its manifest inside."""
    proto = onnx.load(exported.model)
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, exported.manifest.model_dump_json()
    onnx.save(proto, tmp_path / "described.onnx")
    return tmp_path / "described.onnx"


@pytest.mark.triton
def test_good_answers_stay_right_among_hostile_requests(
    described: Path, repository: Path, photos: list[Path], triton_environment: Path, tmp_path: Path
) -> None:
    """Every hostile action is done at least three times; `python -m tests.serving.soak` goes on for ten minutes."""
    with serving(tmp_path / "service.log", "--repository", repository) as running:
        report = soak_service(running, described, photos, seconds=1, seed=0)
        words = running.log.read_text()
    assert report.faults == [], words
    assert all(sum(report.hostile[action.__name__].values()) >= 3 for action in ACTIONS)
    assert "Traceback" not in words


def test_growth_is_from_after_the_warm_up_to_the_end() -> None:
    sizes = [10.0] * 4 + [100.0] * 4 + [105.0] * 4 + [110.0] * 4
    memory = [Memory(second=number, mib={"Triton": size - 2, "regions": 2}) for number, size in enumerate(sizes)]
    assert growth(memory) == pytest.approx(0.1)
    assert growth(memory[:1]) == 0


def test_what_a_report_calls_a_fault() -> None:
    def report(good: dict[str, dict[str, int]], harms: list[str], restarts: int) -> SoakReport:
        return SoakReport(
            machine={},
            seconds=1,
            good=good,
            hostile={},
            harms=harms,
            said=["why"],
            restarts=restarts,
            memory=[],
            growth=0,
        )

    assert report({"photos": {"OK": 3, "RESOURCE_EXHAUSTED": 1}}, [], 0).faults == []
    assert report({"photos": {"OK": 3, "WRONG": 1}}, [], 0).faults == ["good requests ended with WRONG: ['why']"]
    assert report({"photos": {"OK": 3, "UNAVAILABLE": 1}}, ["let in"], 2).faults[1:] == ["let in", "2 restarts"]
    assert len(report({"photos": {"RESOURCE_EXHAUSTED": 1}}, [], 0).faults) == 1
