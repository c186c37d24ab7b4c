"""int8 and fp8: numbers rounded by hand, and Q/DQ pairs in a small graph."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array, to_array

from export.eight_bits import EightBits, insert_pairs, rounded, steps

ONE = np.array(1, np.float32)


@pytest.mark.parametrize(
    ("value", "nearest"),
    [
        (1.0, 1.0),
        (1.06, 1.0),  # between 1 and 2 there are eighths
        (1.07, 1.125),
        (1.0625, 1.0),  # half way: to the even one
        (1.1875, 1.25),
        (17.0, 16.0),  # between 16 and 32 twos
        (-300.0, -288.0),  # between 256 and 448 thirty-twos
        (448.0, 448.0),
        (1e6, 448.0),  # what is too large, too
        (-1e6, -448.0),
        (2.0**-9, 2.0**-9),  # the smallest
        (2.0**-11, 0.0),
        (3 * 2.0**-9 + 2.0**-11, 3 * 2.0**-9),  # under 2**-6 all steps are 2**-9
    ],
)
def test_e4m3_by_hand(value: float, nearest: float) -> None:
    assert float(rounded(np.array(value, np.float32), ONE, "fp8")) == nearest


def test_int8_by_hand() -> None:
    values = np.array([0.4, 0.5, 1.5, -2.5, 126.6, 900, -900], np.float32)
    assert rounded(values, ONE, "int8").tolist() == [0, 0, 2, -2, 127, 127, -127]
    assert rounded(values, ONE / 2, "int8").tolist()[:4] == [1, 1, 3, -5]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("largest", [0.0, 3e-7, 0.01, 1.7, 4096.0])
def test_a_step_clips_nothing_and_is_never_zero(largest: float, kind: EightBits, dtype: type) -> None:
    step = steps(largest, kind, dtype)
    assert step.dtype == dtype and float(step) > 0
    assert float(step) * {"int8": 127, "fp8": 448}[kind] >= largest * (1 - 1e-6)


def small_model(dtype: type) -> onnx.ModelProto:
    """x -> layer 1 -> ReLU -> layer 2, 1x1 convolutions of two channels; the second reads what two layers share."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weights: np.ndarray = np.array([[1.0, 0.5], [0.003, -0.001]], dtype).reshape(2, 2, 1, 1)
    nodes = [
        make_node("Conv", ["x", "w"], ["a"], name="first"),
        make_node("Relu", ["a"], ["b"]),
        make_node("Conv", ["b", "w"], ["y"], name="second"),
        make_node("Conv", ["b", "w"], ["z"], name="third"),
    ]
    values = {name: make_tensor_value_info(name, kind, [1, 2, 1, 2]) for name in "xabyz"}
    graph = make_graph(
        nodes, "small", [values["x"]], [values["y"], values["z"]], [from_array(weights, "w")],
        value_info=[values["a"], values["b"]],
    )  # fmt: skip
    return make_model(graph, opset_imports=[make_opsetid("", 20)], ir_version=10)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )[0]


class TestPairs:
    X = np.array([[[[1.0, -0.3]], [[0.4, 4.0]]]])
    RANGES = {"x": (-0.5, 4.0), "b": (0.0, 1.7)}  # noqa: RUF012

    @pytest.mark.parametrize("dtype", [np.float32, np.float16])
    @pytest.mark.parametrize(("kind", "tolerance"), [("int8", 0.06), ("fp8", 0.2)])
    def test_the_same_within_a_step(self, kind: EightBits, tolerance: float, dtype: type) -> None:
        model = small_model(dtype)
        x: np.ndarray = self.X.astype(dtype)
        paired = insert_pairs(model, dict.fromkeys(["first", "second", "third"], kind), self.RANGES)
        onnx.checker.check_model(paired)
        expected, found = run(model, x), run(paired, x)
        assert found.dtype == dtype and 0 < np.abs(found - expected).max() <= tolerance

    def test_weights_are_stored_once_channel_by_channel(self) -> None:
        paired = insert_pairs(small_model(np.float32), {"first": "fp8", "second": "fp8", "third": "fp8"}, self.RANGES)
        tensors = {tensor.name: tensor for tensor in paired.graph.initializer}
        assert "w" not in tensors and tensors["w_fp8_quantized"].data_type == onnx.TensorProto.FLOAT8E4M3FN
        np.testing.assert_allclose(to_array(tensors["w_fp8_scale"]), [1 / 448, 0.003 / 448], rtol=1e-6)
        stored = to_array(tensors["w_fp8_quantized"]).astype(np.float32).reshape(2, 2)
        np.testing.assert_array_equal(stored, [[448, 224], [448, -144]])  # 149.3: between 128 and 256 sixteens
        kinds = [node.op_type for node in paired.graph.node]
        assert kinds.count("QuantizeLinear") == 2 and kinds.count("DequantizeLinear") == 3, "x, b and w, each once"

    def test_another_layers_weights_stay(self) -> None:
        paired = insert_pairs(small_model(np.float32), {"first": "int8"}, self.RANGES)
        names = [tensor.name for tensor in paired.graph.initializer]
        assert "w" in names and "w_quantized" in names
        assert [node.input[1] for node in paired.graph.node if node.op_type == "Conv"] == ["w_dequantized", "w", "w"]

    def test_steps_are_of_the_type_around_them(self) -> None:
        for dtype, kind in ((np.float16, "FLOAT16"), (ml_dtypes.bfloat16, "BFLOAT16")):
            paired = insert_pairs(small_model(dtype), {"first": "int8", "second": "fp8"}, self.RANGES)
            scales = [tensor for tensor in paired.graph.initializer if tensor.name.endswith("scale")]
            assert len(scales) == 4
            assert {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in scales} == {kind}

    def test_the_given_graph_stays(self) -> None:
        model = small_model(np.float32)
        before = model.SerializeToString(deterministic=True)
        insert_pairs(model, {"first": "int8"}, self.RANGES)
        assert model.SerializeToString(deterministic=True) == before
