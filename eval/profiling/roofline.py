"""What this machine can do at best, measured: a matrix product and a pass over memory in ONNX Runtime itself."""

from __future__ import annotations

import time
from typing import Literal

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper
from pydantic import BaseModel

SIDE = 512  # of the matrices: a product takes little time, so that in one of the tries nothing else runs
MEMORY = 2**24  # float32 values, 64 MiB: few caches hold them
TRIES = {"MatMul": 100, "MatMulInteger": 100, "Neg": 20}


Kind = Literal["fp32", "tf32", "fp16", "fp8", "int8"]  # of products; fp16 stands for bf16, too


class Roofline(BaseModel):
    """Of so many threads of a CPU, or of a GPU. A multiplication and an addition are two operations.

    Where a rate is 0, the machine has no such products, or they were not measured.
    """

    gflops: float  # of float32
    int8_gops: float  # the same of bytes
    gb_per_s: float  # read and written together
    tf32_gflops: float = 0
    half_gflops: float = 0  # of fp16 and bf16
    fp8_gflops: float = 0
    source: str = ""  # what is measured, or what was published; "": this CPU, measured

    def peak(self, kind: Kind) -> float:
        """In GFLOP/s."""
        rates: dict[Kind, float] = {
            "fp32": self.gflops,
            "tf32": self.tf32_gflops,
            "fp16": self.half_gflops,
            "fp8": self.fp8_gflops,
            "int8": self.int8_gops,
        }
        return rates[kind]

    def milliseconds(self, macs: int, moved: int, kind: Kind) -> float:
        """The least time that so many MACs and so many bytes take here; float32's where the type has no peak."""
        return max(2 * macs / (self.peak(kind) or self.gflops), moved / self.gb_per_s) / 1e6

    def or_better(self, other: Roofline) -> Roofline:
        """Of two measurements what each has better: other work on the machine can only lower them."""
        names = [name for name in type(self).model_fields if name != "source"]
        rates = {name: max(getattr(self, name), getattr(other, name)) for name in names}
        return Roofline(**rates, source=self.source)


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
