"""Photos that EXIF turns: the doctor warns of each, and says with training's words where the labels do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from upsnet.datasets.doctor.check import check_split
from upsnet.datasets.folder import PanopticFolder
from upsnet.datasets.split import Split
from upsnet.errors import InputError

HandMade = Callable[..., dict[str, Path]]
WORDS = "the EXIF orientation 6 turns the photo by a quarter, and its labels were painted before that: remove the tag"


def turn(paths: dict[str, Path], orientation: int) -> None:
    photo = paths["images"] / "a.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(photo) as image:
        image.save(photo, exif=exif)


@pytest.mark.parametrize("orientation", [2, 3, 6])
def test_the_doctor_warns(hand_made: HandMade, content: dict[str, Any], orientation: int) -> None:
    paths = hand_made(content)
    turn(paths, orientation)
    tally = check_split(Split(**paths), 1, progress=False).tally
    assert tally.counts == {"exif-turned": 1} | ({"size": 1} if orientation == 6 else {})
    assert tally.texts["exif-turned"][0].endswith(f"a.png has the EXIF orientation {orientation}")
    assert orientation != 6 or WORDS in tally.texts["size"][0]


def test_training_names_the_orientation_too(hand_made: HandMade, content: dict[str, Any]) -> None:
    paths = hand_made(content)
    turn(paths, 6)
    dataset = PanopticFolder(Split(**paths))
    with pytest.raises(InputError, match=WORDS) as caught:
        dataset.read(dataset.records[0])
    assert "a.png 6 x 8" in str(caught.value) and "\n" not in str(caught.value)
    turn(paths, 3)
    assert dataset.read(dataset.records[0])[0].shape == (6, 8, 3)
