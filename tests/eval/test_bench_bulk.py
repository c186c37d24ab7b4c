"""The benchmark of photos by the million, but for Ray: tests/upsnet/bulk/test_on_ray.py has it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from eval import bench_bulk
from eval.bench_bulk import Run, compare, measure, table, write_list
from tests.browser.colours import scene, write_network
from upsnet.bulk.block import Outcome
from upsnet.bulk.command import Here, Work
from upsnet.bulk.photo_list import PhotoList
from upsnet.bulk.plan import ModelFacts
from upsnet.errors import InputError
from upsnet.machine import machine_facts
from upsnet.runtimes.options import RuntimeOptions


class Clock:
    """Its hands move when they are told."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Slow:
    """A runner of two workers: 5 s to start, then two blocks every 2 s."""

    def __init__(self, clock: Clock, lost: int = 0) -> None:
        self._clock, self._lost = clock, lost

    def describe(self, first: Sequence[object]) -> ModelFacts:
        self._clock.seconds += 5
        return ModelFacts("slow", "0" * 64, [{"id": 1, "name": "sky", "isthing": 0}])

    def run(self, photos: PhotoList, work: Work, *_: Any) -> Iterator[Outcome]:
        for number in work.numbers[self._lost :]:
            self._clock.seconds += 2 * (number % 2 == 0)
            yield Outcome(number, photos.block_size, 0, 2.0)

    def close(self) -> None:
        pass


@pytest.fixture
def listed(tmp_path: Path) -> PhotoList:
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / "photos" / f"{number}.png").write_bytes(scene(32, 32))
    return PhotoList.scan(str(write_list(tmp_path, tmp_path / "photos", 40)), 4)


def test_a_list_goes_through_a_folder_again_and_again(listed: PhotoList, tmp_path: Path) -> None:
    names = [Path(line).name for line in (tmp_path / "list.txt").read_text().splitlines()]
    assert listed.photos == 40 and names == [f"{number % 3}.png" for number in range(40)]
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="none"):
        write_list(tmp_path, tmp_path / "none", 3)


def test_the_rate_is_without_the_start(listed: PhotoList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(bench_bulk.time, "perf_counter", clock)
    # Ten blocks of four in five steps: the first two are the start, at 7 s; 32 photos in the 8 s after them.
    assert measure(Slow(clock), listed, tmp_path / "out", 2) == Run(4.0, 7.0)
    with pytest.raises(InputError, match="36 of 40 photos came back"):
        measure(Slow(clock, lost=1), listed, tmp_path / "out", 2)


def test_the_ways_take_turns(listed: PhotoList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_network(tmp_path / "model.onnx")
    order = []

    def here(name: str) -> Here:
        order.append(name)
        return Here(RuntimeOptions(model=model, threads=1), 1)

    monkeypatch.setattr(bench_bulk, "Here", lambda *_: here("plain"))
    monkeypatch.setattr(bench_bulk, "OnRay", lambda _, actors, source: here(f"{actors.number} x {actors.cpus}"))
    ways = compare(RuntimeOptions(model=model), listed, tmp_path, 2, 2)
    assert order == ["plain", "1 x 2", "2 x 1"] * 2
    assert [(way.name, way.actors, len(way.runs)) for way in ways] == [
        ("plain", 0, 2), ("Ray, 1 actor", 1, 2), ("Ray, 2 actors", 2, 2)
    ]  # fmt: skip
    assert ways[0].ratio == ways[0].lowest == ways[0].highest == 1
    for way in ways[1:]:
        each = [one.photos_per_s / plain.photos_per_s for one, plain in zip(way.runs, ways[0].runs, strict=True)]
        assert (way.lowest, way.highest) == (min(each), max(each)) and way.ratio == pytest.approx(sum(each) / 2)
    report = bench_bulk.BulkBench(machine=machine_facts(), packages={}, cores=2, photos=40, block=4, ways=ways)
    report.save(tmp_path / "bench.json")
    assert bench_bulk.BulkBench.load(tmp_path / "bench.json") == report
    assert table(report).row_count == 3
