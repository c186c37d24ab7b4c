"""Weights that ONNX Runtime reads out of the model's own file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any  # a model of the package onnx

import numpy as np
import onnxruntime as ort
import pytest

from upsnet.errors import InputError
from upsnet.runtimes import weights
from upsnet.runtimes.onnx_runtime import open_session
from upsnet.runtimes.weights import LEAST, without_weights

onnx = pytest.importorskip("onnx")  # a client may have none
TensorProto, helper, numpy_helper = onnx.TensorProto, onnx.helper, onnx.numpy_helper
load_external_data_for_model = pytest.importorskip("onnx.external_data_helper").load_external_data_for_model

SIDE = 160  # a matrix of more than LEAST bytes


def write_model(path: Path, side: int = SIDE) -> Any:
    """Two large matrices, one of them as text and not as bytes, and a small vector."""
    values = np.random.default_rng(0).random((side, side), np.float32)
    tensors = [
        numpy_helper.from_array(values, "large"),
        numpy_helper.from_array(np.arange(side, dtype=np.float32), "small"),
        helper.make_tensor("listed", TensorProto.FLOAT, (side, side), values.T.ravel().tolist()),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "large"], ["a"], "first"),
        helper.make_node("Add", ["a", "small"], ["b"], "second"),
        helper.make_node("MatMul", ["b", "listed"], ["y"], "third"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, side]) for name in "xy")
    graph = helper.make_graph(nodes, "graph", [x], [y], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model.metadata_props.add(key="key", value="value")
    onnx.save(model, path)
    return model


def run(session: ort.InferenceSession) -> np.ndarray:
    return session.run(None, {"x": np.ones((2, SIDE), np.float32)})[0]


def test_the_same_model_without_its_weights(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.onnx")
    light = without_weights(tmp_path / "model.onnx")
    assert light is not None and len(light) < model.ByteSize() - 4 * SIDE**2 + 200
    loaded = onnx.load_from_string(light)
    assert [each.data_location for each in loaded.graph.initializer] == [TensorProto.EXTERNAL, 0, 0]
    load_external_data_for_model(loaded, str(tmp_path))
    for each in loaded.graph.initializer:
        each.data_location = TensorProto.DEFAULT
        each.ClearField("data_location")
    assert loaded == model


@pytest.mark.parametrize("name", ["model.onnx", "netz größe 1.onnx", "link.onnx"])
def test_a_session_computes_the_same(name: str, tmp_path: Path) -> None:
    file = tmp_path / "else" / "where.onnx" if name == "link.onnx" else tmp_path / name
    file.parent.mkdir(exist_ok=True)
    write_model(file)
    if file != tmp_path / name:
        (tmp_path / name).symlink_to(file)
    session = open_session(tmp_path / name, threads=1)
    plain = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(run(session), run(plain))
    assert session.get_modelmeta().custom_metadata_map == {"key": "value"}


def test_what_stays_as_it_is(tmp_path: Path) -> None:
    write_model(tmp_path / "small.onnx", side=8)
    assert without_weights(tmp_path / "small.onnx") is None
    for content in (b"", b"\x00" * 100, b"no model at all" * LEAST, b"\xff" * LEAST):
        (tmp_path / "none.onnx").write_bytes(content)
        assert without_weights(tmp_path / "none.onnx") is None


def test_damaged_files_are_refused_in_one_line(tmp_path: Path) -> None:
    write_model(tmp_path / "model.onnx")
    whole = (tmp_path / "model.onnx").read_bytes()
    damaged = tmp_path / "damaged.onnx"
    generator = np.random.default_rng(0)
    for place in [*range(1, 200, 7), *generator.integers(0, len(whole), 100)]:
        damaged.write_bytes(whole[:place])
        assert without_weights(damaged) is None
        changed = bytearray(whole)
        changed[place % 300] ^= 1 << int(generator.integers(8))
        damaged.write_bytes(changed)
        without_weights(damaged)  # says nothing, or what may be right
    damaged.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"damaged\.onnx: ONNX Runtime cannot load it"):
        open_session(damaged)


def test_a_file_that_is_replaced_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "model.onnx")

    def replace(file: Path) -> bytes | None:
        light = without_weights(file)
        os.utime(file, ns=(1, 1))
        return light

    monkeypatch.setattr(weights, "without_weights", replace)
    with pytest.raises(InputError, match="it was replaced while it was read; load it again"):
        open_session(tmp_path / "model.onnx")
