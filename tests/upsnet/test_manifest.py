from __future__ import annotations

import json
from pathlib import Path

import pytest

from upsnet.categories import Categories
from upsnet.errors import InputError
from upsnet.geometry import ResizeRule
from upsnet.manifest import Manifest, Recipe

TABLE = Categories.from_coco([{"id": 7, "name": "cat", "isthing": 1}, {"id": 90, "name": "sky", "isthing": 0}])
MANIFEST = Manifest(
    name="demo", categories=list(TABLE), resize=ResizeRule(short_side=96, max_side=128), max_detections=20
)


def test_round_trip(tmp_path: Path) -> None:
    manifest = MANIFEST.model_copy(update={"versions": {"torch": "2"}, "onnx_sha256": "ab"})
    manifest.save(tmp_path / "x.json")
    assert Manifest.load(tmp_path / "x.json") == manifest
    assert manifest.categories_table == TABLE
    assert manifest.max_segments == 21


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surprise": 1}, "surprise"),
        ({"name": ""}, "name"),
        ({"max_detections": 0}, "max_detections"),
        ({"max_detections": 255}, "exceed 255"),
        ({"format_version": 2}, "format_version"),
        ({"categories": []}, "empty"),
        ({"categories": list(reversed(TABLE.to_coco()))}, "contiguous order"),
        ({"categories": TABLE.to_coco()[:1] * 2}, "more than once"),
        ({"resize": {"short_side": 96, "max_side": 64}}, "max_side 64 is less"),
        ({"resize": {"short_side": 96}}, r"resize\.max_side: Field required"),
    ],
)
def test_a_bad_manifest_is_refused_with_its_file_and_field(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps({**MANIFEST.model_dump(mode="json"), **change}))
    with pytest.raises(InputError, match=rf"bad\.json: .*{message}") as caught:
        Manifest.load(path)
    assert "\n" not in str(caught.value)


def test_load_refuses_what_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(InputError, match=r"bad\.json"):
        Manifest.load(tmp_path / "bad.json")


class TestPrecision:
    def test_a_recipe_goes_with_mixed_alone(self, tmp_path: Path) -> None:
        good = MANIFEST.model_dump(mode="json")
        for change in ({"precision": "mixed"}, {"recipe": {"default": "fp16"}}):
            (tmp_path / "x.json").write_text(json.dumps(good | change))
            with pytest.raises(InputError, match=r"x\.json: .*recipe"):
                Manifest.load(tmp_path / "x.json")

    def test_the_longest_name_counts(self) -> None:
        recipe = Recipe(default="fp16", modules={"backbone": "int8", "backbone.stages.1": "fp8", "rpn": "fp32"})
        found = [recipe.type_of(name) for name in ("backbone.stem", "backbone.stages.1.0", "rpn", "rpnx", "fpn.p2")]
        assert found == ["int8", "fp8", "fp32", "fp16", "fp16"]

    def test_eight_bits_lie_between_floats(self) -> None:
        assert [Recipe(default=each).between for each in ("fp16", "int8", "fp8")] == ["fp16", "fp32", "fp32"]

    def test_an_old_manifest_of_int8(self, tmp_path: Path) -> None:
        """Before there were others: its pair stands in the calibration."""
        calibration = {"data": "train", "photos": 8, "method": "minmax", "pair": "ab"}
        old = MANIFEST.model_dump(mode="json") | {"precision": "int8", "calibration": calibration}
        (tmp_path / "x.json").write_text(json.dumps(old))
        assert Manifest.load(tmp_path / "x.json").twins == "ab" and MANIFEST.twins == ""
        assert not {"pair", "recipe", "calibration"} & set(MANIFEST.model_dump(mode="json"))
