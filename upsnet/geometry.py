"""The one way from a photo to the network's input and from the network's map back to the photo's exact size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from upsnet.errors import InputError


class ResizeRule(BaseModel):
    """Short side and longest long side in network pixels; the padded size is a multiple of `divisor`.

    rounding: of the network size. exact: halves go up. double: detectron2's, whose products in double precision may lie
    below a half or above it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    short_side: int = Field(gt=0)
    max_side: int = Field(gt=0)
    divisor: int = Field(default=32, gt=0)
    rounding: Literal["exact", "double"] = "exact"

    @model_validator(mode="after")
    def _ordered(self) -> ResizeRule:
        if self.max_side < self.short_side:
            raise ValueError(f"max_side {self.max_side} is less than short_side {self.short_side}")
        return self

    @model_serializer(mode="wrap")
    def _usual(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the rounding where it is the usual one: versions before it refuse a key that they don't know."""
        return {key: value for key, value in handler(self).items() if (key, value) != ("rounding", "exact")}

    def network_size(self, height: int, width: int) -> tuple[int, int]:
        """Photo size -> size inside the padding: one factor for both sides, rounded to nearest (halves up), at least 1.

        The factor is the smaller of short_side / short and max_side / long. Integer arithmetic: no platform can differ.
        """
        short, long = min(height, width), max(height, width)
        if short < 1:
            raise InputError(f"an image of {height} x {width} pixels has no content")
        if self.rounding == "double":
            return self._in_double(height, width)
        if self.short_side * long <= self.max_side * short:
            numerator, denominator = self.short_side, short
        else:
            numerator, denominator = self.max_side, long
        return (
            max(1, (2 * height * numerator + denominator) // (2 * denominator)),
            max(1, (2 * width * numerator + denominator) // (2 * denominator)),
        )

    def _in_double(self, height: int, width: int) -> tuple[int, int]:
        """The short side is exact, the other is its factor's; both shrink where that exceeds max_side."""
        factor = self.short_side / min(height, width)
        sides = [self.short_side if side == min(height, width) else factor * side for side in (height, width)]
        shrink = self.max_side / max(sides) if max(sides) > self.max_side else 1.0
        rows, columns = (max(1, math.floor(side * shrink + 0.5)) for side in sides)
        return rows, columns

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Network size -> size with the padding: both sides up to the next multiple of `divisor`."""
        return -(-height // self.divisor) * self.divisor, -(-width // self.divisor) * self.divisor


class NetworkImage(NamedTuple):
    """One photo, ready for the network."""

    image: np.ndarray  # uint8 Hp x Wp x 3 RGB, zero-padded right and bottom
    size: tuple[int, int]  # height, width inside the padding
    scale: float  # network pixels for one original pixel, along one side
    original: tuple[int, int]  # height, width of the photo


class NetworkBatch(NamedTuple):
    """What the graph takes: photos of any shapes, in one array."""

    images: np.ndarray  # uint8 B x H x W x 3 RGB, zero-padded right and bottom
    sizes: np.ndarray  # int32 B x 2: height, width inside the padding
    scales: np.ndarray  # float32 B: network pixels for one original pixel


def to_network(photo: np.ndarray, rule: ResizeRule) -> NetworkImage:
    """Resize (bilinear, antialiased; untouched where the size is right) and pad a uint8 H x W x 3 photo."""
    if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3:
        raise InputError(f"a photo must be uint8 H x W x 3 RGB, not {photo.dtype} {list(photo.shape)}")
    height, width = photo.shape[:2]
    size = rule.network_size(height, width)
    if size != (height, width):
        photo = np.asarray(Image.fromarray(photo).resize(size[::-1], Image.Resampling.BILINEAR))
    padded = np.zeros((*rule.padded_size(*size), 3), np.uint8)
    padded[: size[0], : size[1]] = photo
    return NetworkImage(padded, size, network_scale(size, (height, width)), (height, width))


def network_scale(size: tuple[int, int], original: tuple[int, int]) -> float:
    """Network pixels for one original pixel, along one side."""
    return math.sqrt(size[0] * size[1] / (original[0] * original[1]))


def collate(images: Sequence[NetworkImage]) -> NetworkBatch:
    """At least one image -> a batch, padded to the largest."""
    if not images:
        raise InputError("a batch needs at least one image")
    height = max(net.image.shape[0] for net in images)
    width = max(net.image.shape[1] for net in images)
    batch = np.zeros((len(images), height, width, 3), np.uint8)
    for row, net in zip(batch, images, strict=True):
        row[: net.image.shape[0], : net.image.shape[1]] = net.image
    sizes = np.array([net.size for net in images], np.int32)
    scales = np.array([net.scale for net in images], np.float32)
    return NetworkBatch(batch, sizes, scales)


def to_original(array: np.ndarray, size: tuple[int, int], original: tuple[int, int]) -> np.ndarray:
    """Crop the padding off a network map and bring it to the photo's exact size; nearest, so ids stay ids.

    array: H x W (or H x W x C) with size <= (H, W). Pixel i comes from floor((i + .5) * size / original), in integers.
    """
    if array.ndim < 2 or not (1 <= size[0] <= array.shape[0] and 1 <= size[1] <= array.shape[1]):
        raise InputError(f"a map of shape {list(array.shape)} does not hold an image of {size[0]} x {size[1]}")
    if min(original) < 1:
        raise InputError(f"an original of {original[0]} x {original[1]} pixels has no content")
    if tuple(size) == tuple(original):
        return array[: size[0], : size[1]].copy()
    rows, columns = (_source_index(size[axis], original[axis]) for axis in (0, 1))
    if len(rows) < size[0]:
        return array.take(rows, axis=0).take(columns, axis=1)
    return array.take(columns, axis=1).take(rows, axis=0)


def _source_index(size: int, original: int) -> np.ndarray:
    index = (2 * np.arange(original, dtype=np.int64) + 1) * int(size) // (2 * int(original))
    return np.minimum(index, size - 1)
