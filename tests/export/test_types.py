"""What an engine computes in, held against what was asked for."""

from __future__ import annotations

import pytest

from export.types import wrong_types
from tests.conftest import FakePredictor
from upsnet.engines.manifest import Counts
from upsnet.manifest import Manifest, Recipe


def manifest_of(precision: str, recipe: Recipe | None = None) -> Manifest:
    given = FakePredictor("x").manifest.model_dump() | {"precision": precision, "recipe": recipe}
    return Manifest.model_validate(given)


@pytest.mark.parametrize(
    ("precision", "kinds"),
    [
        ("fp32", {"FLOAT": 53}),
        ("tf32", {"FLOAT": 53}),
        ("fp16", {"HALF": 53}),
        ("bf16", {"BF16": 53}),
        ("int8", {"INT8": 45, "FLOAT": 8}),
        ("fp8", {"FP8": 45, "FLOAT": 8}),
    ],
)
def test_as_asked_for(precision: str, kinds: dict[str, int]) -> None:
    assert wrong_types(manifest_of(precision), {"CONVOLUTION": kinds, "MATRIX_MULTIPLY": kinds}) == []


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "fp8"])
def test_an_engine_that_is_silently_float32(precision: str) -> None:
    wrong = wrong_types(manifest_of(precision), {"CONVOLUTION": {"FLOAT": 53}, "MATRIX_MULTIPLY": {"FLOAT": 6}})
    assert wrong and "53 CONVOLUTION FLOAT" in wrong[-1] and f"{precision}: no layer computes in" in wrong[-1]


def test_a_part_that_is_not() -> None:
    layers: Counts = {"CONVOLUTION": {"HALF": 50, "FLOAT": 3}, "MATRIX_MULTIPLY": {"HALF": 6}}
    assert wrong_types(manifest_of("fp16"), layers) == [
        "fp16: 3 of 53 CONVOLUTION layers compute in FLOAT, not in HALF"
    ]
    assert wrong_types(manifest_of("fp32"), layers)[0].startswith("fp32: 50 of 53 CONVOLUTION layers compute in HALF")


def test_an_engine_without_layers() -> None:
    cases: list[Counts] = [{}, {"CONVOLUTION": {}}, {"CONVOLUTION": {"HALF": 0}}]
    for layers in cases:
        assert "no layer with weights" in wrong_types(manifest_of("fp16"), layers)[0]


def test_mixed_has_each_of_its_types_and_no_other() -> None:
    manifest = manifest_of("mixed", Recipe(default="fp16", modules={"rpn": "fp32", "backbone.stages.0": "int8"}))
    assert wrong_types(manifest, {"CONVOLUTION": {"HALF": 9, "INT8": 3, "FLOAT": 1}}) == []
    (line,) = wrong_types(manifest, {"CONVOLUTION": {"HALF": 9, "FLOAT": 4}})
    assert "no layer computes in INT8" in line
    (line,) = wrong_types(manifest, {"CONVOLUTION": {"HALF": 9, "INT8": 3, "FLOAT": 1, "BF16": 2}})
    assert "2 of 15 CONVOLUTION layers compute in BF16" in line


def test_mixed_of_eight_bits_alone() -> None:
    """What decides is between them, in float32."""
    manifest = manifest_of("mixed", Recipe(default="int8", modules={"rpn": "int8"}))
    assert wrong_types(manifest, {"CONVOLUTION": {"INT8": 9, "FLOAT": 2}}) == []
