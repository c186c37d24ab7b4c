"""Optimisation profiles: the smallest and the largest shapes that an engine is built for, around those of one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from plugins_cuda.schema import Schema
from tests.plugins_cuda.conftest import schema_of

Shape = Sequence[int]
SCHEMAS = [schema_of(room) for room in ("roi_align_fpn", "nms", "deform_conv", "panoptic_fusion")]
# Sizes of the declarations that differ from photo to photo; Ho and Wo follow from them, the others are the network's.
DYNAMIC = {"B", "R", "N", "H", "W", "h", "w", *(f"{side}{level}" for side in "HW" for level in range(2, 6))}


@dataclass(frozen=True)
class Profile:
    """Of the inputs."""

    minimum: Sequence[Shape]
    maximum: Sequence[Shape]


def profile_around(node: str, attributes: Mapping[str, object], shapes: Sequence[Shape]) -> Profile:
    """Half and twice these sizes, wherever they are dynamic."""
    smaller = resized(node, attributes, shapes, lambda size: size // 2 or min(size, 1))
    return Profile(smaller, resized(node, attributes, shapes, lambda size: 2 * size or 1))


def resized(
    node: str, attributes: Mapping[str, object], shapes: Sequence[Shape], resize: Callable[[int], int]
) -> Sequence[Shape]:
    patterns = [pattern for tensor in declaration(node).tensors for pattern in tensor.shapes]
    changed: list[list[int]] = [
        [resize(size) if word in DYNAMIC else size for word, size in zip(pattern, shape, strict=True)]
        for pattern, shape in zip(patterns, shapes, strict=False)
    ]
    for index, pattern in enumerate(patterns[: len(shapes)]):
        if pattern[2:] == ["Ho", "Wo"]:
            changed[index][2:] = convolved(attributes, changed[0][2:], shapes[2][2:])
    return changed


def convolved(attributes: Mapping[str, object], size: Shape, kernel: Shape) -> list[int]:
    strides, pads, dilations = (attributes[name] for name in ("strides", "pads", "dilations"))
    assert isinstance(strides, list) and isinstance(pads, list) and isinstance(dilations, list)
    return [
        (size[axis] + pads[axis] + pads[2 + axis] - dilations[axis] * (kernel[axis] - 1) - 1) // strides[axis] + 1
        for axis in range(2)
    ]


def declaration(node: str) -> Schema:
    return next(
        schema
        for schema in SCHEMAS
        if node in (schema.node, *(tensor.node for tensor in schema.tensors if tensor.node))
    )
