"""DeformConv2d and ModulatedDeformConv2d in standard ONNX operators (opset 20).

Executors know DeformConv in float32 alone, so features of other types are cast; offset, mask and bias are float32.
"""

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
    group: int,
    offset_group: int,
) -> FLOAT:
    out = op.DeformConv(
        op.Cast(x, to=1),
        op.Cast(weight, to=1),
        offset,
        bias,
        strides=strides,
        pads=pads,
        dilations=dilations,
        group=group,
        offset_group=offset_group,
    )
    return op.CastLike(out, x)


@script(Opset("upsnet", 1), default_opset=op)
def ModulatedDeformConv2d(
    x: FLOAT,
    offset: FLOAT,
    weight: FLOAT,
    bias: FLOAT,
    mask: FLOAT,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    group: int,
    offset_group: int,
) -> FLOAT:
    out = op.DeformConv(
        op.Cast(x, to=1),
        op.Cast(weight, to=1),
        offset,
        bias,
        mask,
        strides=strides,
        pads=pads,
        dilations=dilations,
        group=group,
        offset_group=offset_group,
    )
    return op.CastLike(out, x)


def deform_conv_functions() -> list[onnx.FunctionProto]:
    """The bodies of the nodes upsnet::DeformConv2d and upsnet::ModulatedDeformConv2d."""
    return [DeformConv2d.to_function_proto(), ModulatedDeformConv2d.to_function_proto()]
