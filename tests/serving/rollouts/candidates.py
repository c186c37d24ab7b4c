"""Candidates that are wrong on purpose: engines made of a run's, and code that the model `upsnet` runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from serving.repository import TEMPLATE
from upsnet.contract import LIBRARY, METADATA_KEY, MODEL
from upsnet.files import sha256
from upsnet.manifest import Manifest

Change = Callable[[onnx.ModelProto], None]

WRONG = """

_Right = TritonPythonModel


class TritonPythonModel(_Right):
    executed = 0

    def execute(self, requests):
        self.executed += len(requests)
        if self.executed >= {number}:
            {what}
        return super().execute(requests)
"""
SLEEPS = WRONG.format(number=7, what="import time; time.sleep(3600)")
# Of the photo model:
SWAPS = """

_right = photo_tensors


def photo_tensors(predictions, wanted):
    return _right(predictions[::-1], wanted)
"""
JUNK = """

_right = photo_tensors


def photo_tensors(predictions, wanted):
    found = _right(predictions, wanted)
    if "coco_png" in found:
        found["coco_png"][:] = b"junk"
    return found
"""
DIES_AT_THE_20TH = WRONG.format(number=20, what="os._exit(1)")


def make_engine(run: Path, folder: Path, change: Change | None = None, **manifest: Any) -> Path:
    """The engine of a run with its graph and its manifest changed, in a folder of its own."""
    folder.mkdir(parents=True)
    model = onnx.load(str(run / "engine/model.onnx"))
    if change is not None:
        change(model)
    described = Manifest.load(run / "engine/model.manifest.json").model_copy(update=manifest)
    entry = next(each for each in model.metadata_props if each.key == METADATA_KEY)
    entry.value = described.model_copy(update={"onnx_sha256": ""}).model_dump_json()
    onnx.save(model, str(folder / "model.onnx"))
    digest = sha256(folder / "model.onnx")
    described.model_copy(update={"onnx_sha256": digest}).save(folder / "model.manifest.json")
    library = run / "engine" / LIBRARY
    if library.is_file():
        shutil.copyfile(library, folder / LIBRARY)
    return folder


def another_word(model: onnx.ModelProto) -> None:
    """Another file, and the same network."""
    model.doc_string = "staged again"


def half_the_weights_zero(model: onnx.ModelProto) -> None:
    rng = np.random.default_rng(0)
    for weight in _weights(model):
        values = numpy_helper.to_array(weight)
        weight.CopyFrom(numpy_helper.from_array(values * (rng.random(values.shape) < 0.5), weight.name))


def a_broken_head_in_half_precision(model: onnx.ModelProto) -> None:
    """All weights rounded to float16, in which those of the box head's last layer are too large."""
    for weight in _weights(model):
        values = numpy_helper.to_array(weight)
        if weight.name == "box_head.logits.weight":
            values = values * 1e7
        with np.errstate(over="ignore"):
            weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16).astype(np.float32), weight.name))


def renamed(run: Path) -> dict[str, Any]:
    """Of a manifest: one class is called otherwise."""
    first, *others = Manifest.load(run / "engine/model.manifest.json").categories
    return {"categories": [first.model_copy(update={"name": f"not {first.name}"}), *others]}


def make_template(folder: Path, code: str, model: str = MODEL) -> Path:
    """Of all repositories, with that code at the end of the model."""
    shutil.copytree(TEMPLATE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / model / "1/model.py"
    file.write_text(file.read_text() + code)
    return folder


def _weights(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [
        each
        for each in model.graph.initializer
        if each.data_type == onnx.TensorProto.FLOAT and each.name.endswith(".weight") and len(each.dims) > 1
    ]
