"""UsedRows and AllRows in standard ONNX operators (opset 20), which keep all rows."""

# mypy: ignore-errors
# (onnxscript is its own language in Python's clothes: what a checker reads here is not what happens)
from __future__ import annotations

import onnx
from onnxscript import FLOAT, INT32, script
from onnxscript import opset20 as op
from onnxscript.values import Opset

upsnet = Opset("upsnet", 1)


@script(upsnet, default_opset=op)
def UsedRows(rows: FLOAT, counts: INT32):
    return op.Identity(rows)


@script(upsnet, default_opset=op)
def AllRows(results: FLOAT, like: FLOAT):
    return op.Reshape(results, op.Concat(op.Shape(like, end=2), op.Shape(results, start=1), axis=0))


def used_rows_functions() -> list[onnx.FunctionProto]:
    """The bodies of nodes upsnet::UsedRows and upsnet::AllRows."""
    return [UsedRows.to_function_proto(), AllRows.to_function_proto()]
