"""Masks -> panoptic: the COCO photos come back as they are, and small masks worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.upsnet.datasets.conversion.mask_writer import Kind, write_masks
from tests.upsnet.datasets.conversion.truth import Truth, pixels
from upsnet.datasets.conversion.convert import convert
from upsnet.datasets.conversion.masks import read
from upsnet.datasets.folder import PanopticFolder

pytest.importorskip("hotcoco", reason="painting needs hotcoco")


@pytest.mark.parametrize("kind", ["grey", "palette", "colors"])
def test_the_same_panoptic_truth_comes_back(shared_data: Path, tmp_path: Path, kind: Kind) -> None:
    truth = Truth(shared_data)
    write_masks(truth.json_file, tmp_path, kind)
    (made,) = convert(read(tmp_path / "classes", tmp_path / "photos", tmp_path / "instances"), tmp_path / "out")
    assert not made.checkup.tally.errors and (made.contested, made.lost) == (0, [])
    back = PanopticFolder(made.split)
    assert back.categories == truth.data.categories
    assert [each.color for each in back.categories] == [each.color for each in truth.data.categories]
    assert pixels(back) == pixels(truth.data)
