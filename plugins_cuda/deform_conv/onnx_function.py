"""DeformConv2d in standard ONNX operators (opset 20)."""

# mypy: ignore-errors
# (onnxscript is its own language in Python's clothes: what a checker reads here is not what happens)
from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnxscript import FLOAT, script
from onnxscript import opset20 as op
from onnxscript.values import Opset


@script(Opset("upsnet", 1), default_opset=op)
def DeformConv2d(
    x: FLOAT,
    offset: FLOAT,
    weight: FLOAT,
    bias: FLOAT,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
) -> FLOAT:
    return op.DeformConv(x, weight, offset, bias, strides=strides, pads=pads, dilations=dilations)


def deform_conv_function() -> onnx.FunctionProto:
    """The body of node upsnet::DeformConv2d."""
    return DeformConv2d.to_function_proto()
