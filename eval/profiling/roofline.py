"""What this machine can do at best, measured: a matrix product and a pass over memory in ONNX Runtime itself."""

from __future__ import annotations

import time

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper
from pydantic import BaseModel

SIDE = 512  # of the matrices: a product takes little time, so that in one of the tries nothing else runs
MEMORY = 2**24  # float32 values, 64 MiB: few caches hold them
TRIES = {"MatMul": 100, "MatMulInteger": 100, "Neg": 20}


class Roofline(BaseModel):
    """Of so many threads."""

    gflops: float  # of float32; a multiplication and an addition are two
    int8_gops: float  # the same of bytes
    gb_per_s: float  # read and written together

    def milliseconds(self, macs: int, moved: int, int8: bool) -> float:
        """The least time that so many MACs and so many bytes take here."""
        peak = self.int8_gops if int8 else self.gflops
        return max(2 * macs / peak, moved / self.gb_per_s) / 1e6

    def or_better(self, other: Roofline) -> Roofline:
        """Of two measurements what each has better: other work on the machine can only lower them."""
        names = type(self).model_fields
        return Roofline(**{name: max(getattr(self, name), getattr(other, name)) for name in names})


def measure(threads: int) -> Roofline:
    """The best of a few tries each; about a second."""
    generator = np.random.default_rng(0)
    floats = generator.random((SIDE, SIDE), np.float32)
    unsigned = generator.integers(0, 255, (SIDE, SIDE), np.uint8)
    signed = generator.integers(-64, 64, (SIDE, SIDE), np.int8)
    product = _seconds("MatMul", [floats, floats], TensorProto.FLOAT, threads)
    product8 = _seconds("MatMulInteger", [unsigned, signed], TensorProto.INT32, threads)
    memory = _seconds("Neg", [np.ones(MEMORY, np.float32)], TensorProto.FLOAT, threads)
    operations = 2 * SIDE**3
    return Roofline(
        gflops=operations / product / 1e9, int8_gops=operations / product8 / 1e9, gb_per_s=8 * MEMORY / memory / 1e9
    )


def _seconds(operator: str, arrays: list[np.ndarray], kind: int, threads: int) -> float:
    """Of one node; the second matrix of a product is a weight, as in the network."""
    names = ["a", "b"][: len(arrays)]
    node = helper.make_node(operator, names, ["out"])
    first = helper.make_tensor_value_info("a", helper.np_dtype_to_tensor_dtype(arrays[0].dtype), arrays[0].shape)
    output = helper.make_tensor_value_info("out", kind, [None] * arrays[0].ndim)
    weights = [onnx.numpy_helper.from_array(array, "b") for array in arrays[1:]]
    graph = helper.make_graph([node], "roof", [first], [output], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    best = float("inf")
    for _ in range(TRIES[operator]):
        start = time.perf_counter()
        session.run(None, {"a": arrays[0]})
        best = min(best, time.perf_counter() - start)
    return best
