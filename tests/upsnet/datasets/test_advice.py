"""What the commands say to do with a data set."""

from __future__ import annotations

from pathlib import Path

import pytest

from upsnet.datasets.advice import how_to_train


@pytest.mark.parametrize(
    ("images", "pixels", "limit", "schedule"),
    [
        (4, 4 * 640 * 480, "3100", "40000"),  # 3072 to two digits; 120 photos are too few
        (10_000, 10_000 * 1920 * 1080, "21000", "300000"),
        (1, 50, "0", "40000"),
    ],
)
def test_the_numbers_of_a_configuration(images: int, pixels: int, limit: str, schedule: str) -> None:
    text = how_to_train(Path("data/mine"), images, pixels)
    assert f"stuff_area_limit: {limit}}}" in text and f"images: {schedule} " in text
    assert text.endswith("upsnet train --config my.yaml --data data/mine")
