"""Which files an engine is built from: an exported model with its own manifest, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from export.building import build_engine
from export.exported import read_exported
from upsnet.contract import manifest_path
from upsnet.errors import InputError
from upsnet.manifest import Manifest


@pytest.fixture
def model(tiny_half: Path, tmp_path: Path) -> Path:
    for path in (tiny_half, manifest_path(tiny_half)):
        shutil.copy(path, tmp_path / path.name)
    return tmp_path / tiny_half.name


def test_the_model_and_what_it_says(model: Path) -> None:
    found = read_exported(model)
    assert found.manifest == Manifest.load(manifest_path(model))
    assert found.nodes > 100 and found.metadata["upsnet.manifest"]


def test_another_models_manifest(model: Path) -> None:
    """Its names would be given to this model's segments."""
    beside = manifest_path(model)
    manifest = Manifest.load(beside)
    manifest.model_copy(update={"onnx_sha256": "0" * 64}).save(beside)
    with pytest.raises(InputError, match=rf"{model.name}: not the model that {beside.name} describes.*make onnx"):
        build_engine(model, model.parent / "engine")
    renamed = [manifest.categories[0].model_copy(update={"name": "giraffe"}), *manifest.categories[1:]]
    manifest.model_copy(update={"categories": renamed}).save(beside)
    with pytest.raises(InputError, match=rf"{beside.name} has other categories than the model itself"):
        build_engine(model, model.parent / "engine")
    assert not (model.parent / "engine").exists()


def test_what_is_no_exported_model(model: Path) -> None:
    checkpoint = model.with_name("last.safetensors")
    checkpoint.write_bytes(b"weights")
    alone = model.with_name("alone.onnx")
    shutil.copy(model, alone)
    for path, what in (
        (model.parent, "a folder"),
        (checkpoint, "no ONNX file"),
        (model.with_name("gone.onnx"), "no such file"),
        (alone, r"there is no alone\.manifest\.json beside it"),
    ):
        with pytest.raises(InputError, match=rf"{path.name}: {what}.*make onnx"):
            read_exported(path)


def test_a_damaged_model(model: Path) -> None:
    manifest = Manifest.load(manifest_path(model))
    model.write_bytes(model.read_bytes()[:-1000])
    with pytest.raises(InputError, match="altered, damaged or replaced"):
        read_exported(model)
    manifest.model_copy(update={"onnx_sha256": ""}).save(manifest_path(model))  # as of a file that has no hash
    with pytest.raises(InputError, match="damaged: it is no ONNX file"):
        read_exported(model)
