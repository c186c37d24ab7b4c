"""The manifest: what a client must know about an exported model, in a JSON file beside it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from upsnet.categories import Categories, Category
from upsnet.errors import InputError
from upsnet.geometry import ResizeRule
from upsnet.json_model import JsonModel
from upsnet.report import Sparse

Precision = Literal["fp32", "fp16", "int8"]  # of the exported features and convolution weights
MAX_SEGMENTS = 255  # the panoptic map is uint8 and 0 is void


class Calibration(BaseModel):
    """What the steps of an int8 model were measured on: how many photos of which data set, as it was named, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    photos: int = Field(gt=0)
    method: str
    # A hash of the two graphs that came from it, ONNX Runtime's and TensorRT's: both files have the same.
    pair: str = ""


class Manifest(JsonModel, Sparse):
    """Categories in contiguous order, sizes and versions of one model. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    categories: list[Category]
    resize: ResizeRule
    max_detections: int = Field(gt=0)
    max_batch: int = Field(default=4, gt=0)
    precision: Precision = "fp32"
    calibration: Calibration | None = None  # of int8 alone
    format_version: int = Field(default=1, ge=1, le=1)
    versions: dict[str, str] = Field(default={})
    onnx_sha256: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        try:
            table = Categories(self.categories)
        except InputError as error:
            raise ValueError(str(error)) from error
        if list(table) != self.categories:
            raise ValueError("categories are not in contiguous order (stuff by id, then things by id)")
        if self.max_segments > MAX_SEGMENTS:
            raise ValueError(
                f"{table.num_stuff} stuff classes + {self.max_detections} detections exceed {MAX_SEGMENTS} segments"
            )
        return self

    @property
    def categories_table(self) -> Categories:
        return Categories(self.categories)

    @property
    def max_segments(self) -> int:
        """K, the rows of the graph's `segments` output: stuff classes + most detections."""
        return sum(not category.isthing for category in self.categories) + self.max_detections
