"""PaddedNms in standard ONNX operators (opset 20)."""

# mypy: ignore-errors
# (onnxscript is its own language in Python's clothes: what a checker reads here is not what happens)
from __future__ import annotations

import onnx
from onnxscript import FLOAT, INT32, INT64, script
from onnxscript import opset20 as op
from onnxscript.values import Opset


@script(Opset("upsnet", 1), default_opset=op)
def PaddedNms(
    boxes: FLOAT, scores: FLOAT, iou_threshold: float, score_threshold: float, max_output: int
) -> tuple[INT64, INT32]:
    # NonMaxSuppression takes any two opposite corners, torchvision lets an inverted box overlap nothing: make it empty.
    first, last = op.Split(boxes, axis=-1, num_outputs=2)
    selected = op.NonMaxSuppression(
        op.Concat(first, op.Max(first, last), axis=-1),
        op.Unsqueeze(scores, [1]),
        op.Reshape(op.Constant(value_int=max_output), [1]),
        op.Reshape(op.Constant(value_float=iou_threshold), [1]),
        op.Reshape(op.Constant(value_float=score_threshold), [1]),
    )
    # [K, 3] (image, 0, box), image after image, in descending score: find the place of each in the row of its image.
    image, _zero, box = op.Split(selected, axis=1, num_outputs=3)
    batch = op.Shape(boxes, end=1)
    of_image = op.Cast(image == op.Range(0, op.Squeeze(batch), 1), to=7)  # [K, B]
    count = op.ReduceSum(of_image, [0], keepdims=0)
    start = op.CumSum(count, 0, exclusive=1)
    order = op.Range(0, op.Squeeze(op.Shape(selected, end=1)), 1)
    place = op.Unsqueeze(order, [1]) - op.Gather(start, image)
    padded = op.ConstantOfShape(
        op.Concat(batch, op.Reshape(op.Constant(value_int=max_output), [1]), axis=0),
        value=onnx.helper.make_tensor("zero", 7, [1], [0]),
    )
    indices = op.ScatterND(padded, op.Concat(image, place, axis=1), op.Squeeze(box, [1]))
    return indices, op.Cast(count, to=6)


def nms_function() -> onnx.FunctionProto:
    """The body of node upsnet::PaddedNms."""
    return PaddedNms.to_function_proto()
