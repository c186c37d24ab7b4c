"""evaluations.jsonl: what an evaluation of a run found beyond its figures in metrics.jsonl, a line each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from upsnet.categories import Channel
from upsnet.errors import InputError, one_line
from upsnet.json_model import read_steps

NAME = "evaluations.jsonl"

Share = Annotated[float, Field(ge=0, le=1)]  # nan is not
Number = Annotated[int, Field(ge=0)]


class ClassQuality(BaseModel):
    """One class over all images. `void`: of its `pixels` in the truth those that the prediction leaves void."""

    id: int
    name: str
    isthing: bool
    color: tuple[Channel, Channel, Channel]
    pq: Share
    sq: Share
    rq: Share
    tp: Number
    fp: Number
    fn: Number
    pixels: Number
    void: Number

    @property
    def occurs(self) -> bool:
        """In the truth or in a prediction."""
        return self.tp + self.fp + self.fn > 0


class Spread(BaseModel):
    """The mean PQ of an image, and its standard deviation over the images that have one."""

    images: Number
    mean: Share
    deviation: Share

    @property
    def error(self) -> float:
        """The mean's standard error; of one image nothing is known."""
        return self.deviation / self.images**0.5 if self.images > 1 else 1.0


class WorstImage(BaseModel):
    image_id: int
    file_name: str
    pq: Share


class Void(BaseModel):
    """Void pixels in prediction and truth. The bins count images by their share of void, from VOID_BINS."""

    pixels: Number
    predicted: Number
    truth: Number
    both: Number
    predicted_bins: list[Number]
    truth_bins: list[Number]


class Evaluation(BaseModel):
    """What one evaluation found. validation, training: the PQ of images that the network has never seen, and of some
    that it is trained with; None where no image has one."""

    step: int
    images: Number
    classes: list[ClassQuality]
    void: Void
    validation: Spread | None
    training: Spread | None
    worst: list[WorstImage]  # the lowest PQ first


def read_evaluations(path: Path) -> list[Evaluation]:
    """The whole lines; [] where there is no file. InputError names a damaged line."""
    if not path.is_file():
        return []
    found = []
    for number, (_, content) in enumerate(read_steps(path, drop_half=True), 1):
        try:
            found.append(Evaluation.model_validate(content))
        except ValidationError as error:
            raise InputError(f"{path}: line {number}: {one_line(error)}; delete it") from None
    return found
