"""What a server answers for photos: how large their label maps may be together."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import FakePredictor
from upsnet.contract import LABELS, LABELS16, PHOTO_SIZES
from upsnet.errors import InputError
from upsnet.photo_tensors import MOST_LABELS, photo_tensors
from upsnet.photos import MAX_PIXELS
from upsnet.prediction import PanopticPrediction
from upsnet.result import PanopticResult


def empty(height: int, width: int) -> PanopticPrediction:
    """Of a photo in which nothing was found. Its map takes no memory."""
    ids = np.broadcast_to(np.int32(0), (height, width))
    categories = FakePredictor("fake").manifest.categories_table
    return PanopticPrediction(PanopticResult(ids, []), categories, np.empty((0, 0, 3), np.uint8), "photo", "")


@pytest.mark.parametrize(
    ("sizes", "wanted", "size"),
    [
        ([(1, 7000), (7000, 1)] * 2, {LABELS, LABELS16}, 4 * 7000 * 7000 * 3),
        ([(1, 7000), (7000, 1)] * 2, {LABELS16}, 4 * 7000 * 7000 * 2),
        ([(1, 20_000), (20_000, 1)], {LABELS}, 2 * 20_000 * 20_000),
    ],
)
def test_all_maps_of_a_request_count(
    sizes: list[tuple[int, int]], wanted: set[str], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request of a few hundred bytes would take this much memory. None is taken before it is refused."""
    predictions = [empty(*each) for each in sizes]
    monkeypatch.setattr(np, "zeros", None)
    message = (
        rf"^the label maps of {len(sizes)} photos of .* take {size} bytes, .*{MOST_LABELS}; send them one at a time$"
    )
    with pytest.raises(InputError, match=message):
        photo_tensors(predictions, wanted | {PHOTO_SIZES})
    assert photo_tensors(predictions, {PHOTO_SIZES})[PHOTO_SIZES].tolist() == [list(each) for each in sizes]


def test_the_cure_is_one() -> None:
    """A photo alone is answered, whatever its size and shape."""
    for height, width in ((1, MAX_PIXELS), (5_000, 10_000)):
        found = photo_tensors([empty(height, width)], {LABELS, LABELS16})
        assert {name: array.shape for name, array in found.items()} == {
            LABELS: (1, height, width),
            LABELS16: (1, height, width),
        }
