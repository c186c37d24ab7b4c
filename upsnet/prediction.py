"""What a model says about a photo, for applications: segments by name, masks, pictures, and other tools' formats."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from upsnet.categories import Categories
from upsnet.datasets.coco_format import PredictionWriter, add_prediction
from upsnet.draw import overlay
from upsnet.errors import InputError
from upsnet.files import PathLike
from upsnet.result import PanopticResult

if TYPE_CHECKING:
    import supervision


class PredictedSegment(NamedTuple):
    """One segment of a photo. Area and box are in the photo's pixels."""

    id: int  # its value in PanopticPrediction.ids
    category_id: int  # of the data set
    name: str  # of the category
    isthing: bool  # True: one instance of a thing; False: all of one kind of stuff
    score: float  # 0 .. 1; stuff has 1
    area: int
    box: tuple[int, int, int, int]  # x, y, width, height


@dataclass(frozen=True, eq=False, repr=False)
class PanopticPrediction:
    """Which segment each pixel of a photo belongs to, and what each segment is.

    >>> prediction = model.predict("street.jpg")  # doctest: +SKIP
    >>> prediction  # doctest: +SKIP
    <PanopticPrediction of street.jpg, 480 x 640: 3 person, sky, grass>
    >>> prediction.mask(prediction.segments[0]).sum() == prediction.segments[0].area  # doctest: +SKIP
    True
    """

    result: PanopticResult  # as the runtime gave it: contiguous categories
    categories: Categories
    read: np.ndarray | Callable[[], np.ndarray]  # the photo, or what reads it when it is first asked for
    source: str  # where the photo came from: its path, the frame of a video, or its place in a list
    name: str  # what its files are called, without suffix; with the folders below the one that was given
    stages: Mapping[str, float] = field(default_factory=dict)  # seconds of each, where somebody measured them

    @cached_property
    def photo(self) -> np.ndarray:
        """uint8 H x W x 3 RGB, upright. Where a server decoded it, it is read now: InputError if it has changed."""
        photo = self.read() if callable(self.read) else self.read
        if photo.shape[:2] != self.ids.shape:
            raise InputError(f"{self.source}: it has changed since it was predicted; predict it again")
        return photo

    @property
    def ids(self) -> np.ndarray:
        """int32 H x W, the photo's size: the id of each pixel's segment, 0 where there is none (void)."""
        return self.result.ids

    @cached_property
    def segments(self) -> tuple[PredictedSegment, ...]:
        """One for every id in `ids` but 0: stuff first, then things by falling score."""
        return tuple(
            PredictedSegment(id, category.id, category.name, category.isthing, score, area, box)
            for id, index, score, area, box in self.result.segments
            for category in [self.categories[index]]
        )

    def mask(self, segment: PredictedSegment | int) -> np.ndarray:
        """bool H x W: the pixels of a segment, or of the segment with that id. InputError for an id there is not."""
        id = segment.id if isinstance(segment, PredictedSegment) else segment
        if not any(id == known.id for known in self.segments):
            raise InputError(f"{self.source}: no segment has the id {id!r}; .segments lists them")
        return self.ids == id

    def overlay(self, scores: bool = True) -> Image.Image:
        """The photo under coloured segments, their outlines and names (things with their scores, if wanted).

        An RGB image of the photo's size; a photo of less than 320 pixels is enlarged by a whole factor.
        """
        return Image.fromarray(overlay(self.photo, self.result, self.categories, scores))

    def describe(self) -> str:
        """The segments in words, things with their number: '3 person, sky, grass'."""
        counts = Counter(segment.category for segment in self.result.segments)
        words = [
            f"{count} {category.name}" if category.isthing else category.name
            for index, category in sorted(enumerate(self.categories), key=lambda item: not item[1].isthing)
            if (count := counts[index])
        ]
        return ", ".join(words) or "nothing found"

    def save_coco(self, folder: PathLike) -> None:
        """Write folder/predictions/<name>.png and folder/predictions.json, the official COCO panoptic format.

        Other photos' predictions in the folder stay; for many, `upsnet.save_coco(predictions, folder)` is faster.
        Raises InputError when the folder cannot be written to or holds predictions of other categories.
        """
        add_prediction(folder, f"{self.name}.png", self.result, self.categories)

    def to_dict(self) -> dict[str, Any]:
        """Source, size and segments as JSON has them; the pixels are in `ids`."""
        height, width = self.ids.shape
        segments = [{**segment._asdict(), "box": list(segment.box)} for segment in self.segments]
        return {"source": self.source, "height": height, "width": width, "segments": segments}

    def to_supervision(self) -> supervision.Detections:
        """One row a segment, stuff too; class_id is the data set's category id.

        `data` has class_name, segment_id and isthing, `metadata` the source. InputError without that package.
        """
        try:
            import supervision
        except ImportError as error:
            raise InputError(f"to_supervision needs a package ({error}): pip install supervision") from None
        count = len(self.segments)
        corners = [(x, y, x + width, y + height) for x, y, width, height in (each.box for each in self.segments)]
        return supervision.Detections(
            xyxy=np.array(corners, np.float32).reshape(count, 4),
            mask=np.array([self.mask(each) for each in self.segments], bool).reshape(count, *self.ids.shape),
            confidence=np.array([each.score for each in self.segments], np.float32),
            class_id=np.array([each.category_id for each in self.segments], int),
            data={
                "class_name": np.array([each.name for each in self.segments], str),
                "segment_id": np.array([each.id for each in self.segments], int),
                "isthing": np.array([each.isthing for each in self.segments], bool),
            },
            metadata={"source": self.source},
        )

    def __repr__(self) -> str:
        height, width = self.ids.shape
        return f"<PanopticPrediction of {self.source}, {height} x {width}: {self.describe()}>"

    def _repr_png_(self) -> bytes:
        """The overlay, which a notebook shows."""
        buffer = io.BytesIO()
        self.overlay().save(buffer, "PNG")
        return buffer.getvalue()


def save_coco(predictions: PanopticPrediction | Iterable[PanopticPrediction], folder: PathLike) -> None:
    """Write predictions, one at a time, into folder/predictions/<name>.png and folder/predictions.json, all or none.

    One prediction will do. The official COCO panoptic format; image ids are 1 .. n. An older predictions.json is
    replaced.
    Raises InputError when there are none, two have the same name, or their categories differ.

    >>> upsnet.save_coco(model.stream("photos"), "out")  # doctest: +SKIP
    """
    rest = iter([predictions] if isinstance(predictions, PanopticPrediction) else predictions)
    first = next(rest, None)
    if first is None:
        raise InputError(f"{folder}: there are no predictions to write")
    with PredictionWriter(folder, first.categories) as writer:
        for image_id, prediction in enumerate(chain([first], rest), 1):
            if prediction.categories != first.categories:
                raise InputError(f"{prediction.source}: its categories are not those of {first.source}")
            writer.add(image_id, f"{prediction.name}.png", prediction.result)
