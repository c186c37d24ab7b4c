"""COCO panoptic JSON as labelling tools, scripts and accidents leave it: the doctor, the reader and PQ."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import write_dataset
from tests.fuzz.mutations import damaged, dump, fuzzed, mutated, refused
from upsnet.datasets.doctor.check import check_split
from upsnet.datasets.folder import PanopticFolder
from upsnet.datasets.split import Split
from upsnet.metrics.pq_files import evaluate


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_dataset(tmp_path_factory.mktemp("data"), images=2)
    shutil.copyfile(path, path.with_name("good.json"))
    return path


def check(path: Path) -> None:
    """The doctor ends with a report; what it finds no error in, opens and scores."""
    split = Split.usual(path)
    passed = False
    with refused(str(path)):
        passed = not check_split(split, workers=1, progress=False).tally.errors
    opened = False
    with refused(path.name):
        dataset = PanopticFolder(split)
        for record in dataset.records:
            dataset.read(record)
        opened = True
    with refused():
        evaluate(path.with_name("good.json"), path, pred_folder=split.segments, gt_folder=split.segments)
    assert opened or not passed


@fuzzed(60)
@given(st.data())
def test_values(good: Path, data: st.DataObject) -> None:
    document = json.loads(good.with_name("good.json").read_text())
    good.write_text(dump(data.draw(mutated(document))))
    check(good)


@fuzzed(40)
@given(st.data())
def test_bytes(good: Path, data: st.DataObject) -> None:
    good.write_bytes(data.draw(damaged(good.with_name("good.json").read_bytes())))
    check(good)


@pytest.mark.parametrize(
    "content", ["[" * 100_000, "9" * 5000, '{"images": 1e999}', "", "null", "\ufeff{}", '{"a": "\\ud800"}']
)
def test_json_of_its_own(good: Path, content: str) -> None:
    good.write_text(content)
    check(good)
