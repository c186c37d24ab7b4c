"""The manifest: what a client must know about an exported model, in a JSON file beside it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from upsnet.categories import Categories, Category
from upsnet.errors import InputError
from upsnet.geometry import ResizeRule
from upsnet.json_model import JsonModel
from upsnet.report import Sparse

# Of features and convolution weights, in the exported file. tf32: the file is fp32's, the builder may round to TF32.
Precision = Literal["fp32", "tf32", "fp16", "bf16", "int8", "fp8", "mixed"]
ModuleType = Literal["fp32", "fp16", "bf16", "int8", "fp8"]  # of a module, where they are mixed
EIGHT_BITS: tuple[Literal["int8", "fp8"], ...] = ("int8", "fp8")
MAX_SEGMENTS = 255  # the panoptic map is uint8 and 0 is void


class Recipe(JsonModel):
    """Which module computes in which type, of precision "mixed". Unknown keys are refused.

    modules: by their names in the network, as "backbone.stages.1.0", "fpn.p2", "rpn", "box_head" (`modules_of` in
    export/modules.py lists them); a name stands for all that is in it, and the longest one counts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    default: ModuleType = "fp32"
    modules: dict[str, ModuleType] = Field(default={})

    def type_of(self, module: str) -> ModuleType:
        """Its own, else that of what it is in, else the default."""
        parts = module.split(".")
        names = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        return next((self.modules[name] for name in names if name in self.modules), self.default)

    @property
    def between(self) -> ModuleType:
        """The floating-point type around the layers of eight bits: the default's, or fp32 where that has eight too."""
        return "fp32" if self.default in EIGHT_BITS else self.default

    @property
    def types(self) -> set[ModuleType]:
        """All that it names."""
        return {self.default, *self.modules.values()}


class Calibration(BaseModel):
    """What the steps of eight bits were measured on: how many photos of which data set, as it was named, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    photos: int = Field(gt=0)
    method: str
    # A hash of the two graphs that came from it, ONNX Runtime's and TensorRT's: both files have the same. See
    # `Manifest.twins`.
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
    recipe: Recipe | None = None  # of mixed alone
    calibration: Calibration | None = None  # of int8, of fp8, and of a recipe that names one
    pair: str | None = None  # as calibration.pair, of two graphs that need no calibration
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
        if (self.precision == "mixed") != (self.recipe is not None):
            raise ValueError(f"precision {self.precision} with{'out' * (self.recipe is None)} a recipe")
        if self.max_segments > MAX_SEGMENTS:
            raise ValueError(
                f"{table.num_stuff} stuff classes + {self.max_detections} detections exceed {MAX_SEGMENTS} segments"
            )
        return self

    @property
    def categories_table(self) -> Categories:
        return Categories(self.categories)

    @property
    def twins(self) -> str:
        """The hash that ties ONNX Runtime's graph to TensorRT's (upsnet/contract.py: `tensorrt_path`), where an export
        gave two; "" where one file is for both."""
        return (self.calibration.pair if self.calibration else "") or self.pair or ""

    @property
    def max_segments(self) -> int:
        """K, the rows of the graph's `segments` output: stuff classes + most detections."""
        return sum(not category.isthing for category in self.categories) + self.max_detections
