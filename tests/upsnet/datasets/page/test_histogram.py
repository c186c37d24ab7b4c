from __future__ import annotations

import numpy as np
import pytest

from upsnet.datasets.page.histogram import coco_shares, common_sizes, ratio_bins, side_bins


def test_sides_are_counted_from_the_lower_edge_on() -> None:
    bins = side_bins(np.array([31.9, 32, 47.9, 95, 96]), sized=True)
    assert [(each.label, each.number, each.kind) for each in bins] == [
        ("24 to 32", 1, "small"),
        ("32 to 48", 2, "medium"),
        ("48 to 64", 0, "medium"),
        ("64 to 96", 1, "medium"),
        ("96 to 128", 1, "large"),
    ]
    assert [each.height for each in bins] == [50, 100, 0, 50, 50]


def test_sides_beyond_the_edges() -> None:
    assert [(each.label, each.number) for each in side_bins(np.array([0.5]))] == [("0 to 1", 1)]
    assert [(each.label, each.number) for each in side_bins(np.array([5000.0, 4096]))] == [("from 4096", 2)]
    assert side_bins(np.zeros(0)) == []


@pytest.mark.parametrize(
    ("size", "label"),
    [
        ((640, 480), "5:4 to 3:2"),
        ((480, 640), "2:3 to 4:5"),
        ((1920, 1080), "3:2 to 2:1"),
        ((7, 7), "4:5 to 5:4"),
        ((10, 5), "from 2:1"),
        ((4, 10), "under 1:2"),
    ],
)
def test_ratios(size: tuple[int, int], label: str) -> None:
    assert [each.label for each in ratio_bins(np.array([size[0] / size[1]]))] == [label]


def test_coco_shares_are_those_of_its_evaluation() -> None:
    areas = np.array([1, 1023, 1024, 9215, 9216, 50000, 60000, 70000], float)
    assert coco_shares(areas) == {"small": 0.25, "medium": 0.25, "large": 0.5}
    assert coco_shares(np.zeros(0)) == {}


def test_common_sizes_come_by_number_then_by_size() -> None:
    sizes = [(480, 640)] * 2 + [(640, 480)] * 3 + [(10, 20), (9, 20)]
    assert common_sizes(sizes) == [("480 × 640", 3), ("640 × 480", 2), ("20 × 9", 1)]
