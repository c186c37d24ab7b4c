"""PaddedNms and PaddedBatchedNms in standard ONNX operators (opset 20).

NonMaxSuppression's boxes have exclusive corners: in the legacy convention x2 and y2 move by one pixel. That is exact
for coordinates with a few bits to spare; elsewhere an IoU within rounding of the threshold may fall on its other side.
"""

# mypy: ignore-errors
# (onnxscript is its own language in Python's clothes: what a checker reads here is not what happens)
from __future__ import annotations

import onnx
from onnxscript import FLOAT, INT32, INT64, script
from onnxscript import opset20 as op
from onnxscript.values import Opset

upsnet = Opset("upsnet", 1)


@script(upsnet, default_opset=op)
def NmsCorners(boxes: FLOAT, inclusive: int = 0) -> FLOAT:
    """The boxes as NonMaxSuppression wants them. It takes any two opposite corners, where an inverted box overlaps
    nothing: make that one empty."""
    first, last = op.Split(boxes, axis=-1, num_outputs=2)
    pixel = op.Cast(op.Constant(value_int=inclusive), to=1)
    return op.Concat(first, op.Max(first, last + pixel), axis=-1)


@script(upsnet, default_opset=op)
def NmsCandidates(scores: FLOAT, score_threshold: float) -> FLOAT:
    """The scores [B, N]; -inf for what does not compete."""
    nothing = op.Constant(value_float=float("-inf"))
    return op.Where(scores > op.Constant(value_float=score_threshold), scores, nothing)


@script(upsnet, default_opset=op)
def PaddedNms(
    boxes: FLOAT,
    scores: FLOAT,
    iou_threshold: float,
    score_threshold: float,
    max_output: int,
    inclusive: int = 0,
) -> tuple[INT64, INT32]:
    selected = op.NonMaxSuppression(
        NmsCorners(boxes, inclusive=inclusive),
        op.Unsqueeze(NmsCandidates(scores, score_threshold=score_threshold), [1]),
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


@script(upsnet, default_opset=op)
def PaddedBatchedNms(
    boxes: FLOAT,
    scores: FLOAT,
    classes: INT64,
    iou_threshold: float,
    score_threshold: float,
    max_output: int,
    inclusive: int = 0,
) -> tuple[INT64, INT32]:
    nothing = op.Constant(value_float=float("-inf"))
    competing = NmsCandidates(scores, score_threshold=score_threshold)
    # [B, C, N]: each score in the row of its class alone.
    labels, _first, _inverse, _counts = op.Unique(classes, sorted=1)
    of_class = op.Unsqueeze(classes, [1]) == op.Unsqueeze(labels, [1])
    limit = op.Reshape(op.Constant(value_int=max_output), [1])
    selected = op.NonMaxSuppression(
        NmsCorners(boxes, inclusive=inclusive),
        op.Where(of_class, op.Unsqueeze(competing, [1]), nothing),
        limit,
        op.Reshape(op.Constant(value_float=iou_threshold), [1]),
        op.Reshape(op.Constant(value_float=score_threshold), [1]),
    )
    # [K, 3] (image, class, box): the survivors of all classes by score, the lower index first.
    place = op.Gather(selected, [0, 2], axis=1)
    empty = op.Expand(nothing, op.Shape(scores))
    survivors = op.ScatterND(empty, place, op.GatherND(competing, place))
    width = op.Shape(scores, start=1)
    k = op.Min(limit, width)
    best, box = op.TopK(survivors, k, axis=1)
    valid = best > nothing
    box = op.Where(valid, box, 0)
    indices = op.Pad(box, op.Concat([0, 0, 0], limit - k, axis=0))
    return indices, op.Cast(op.ReduceSum(op.Cast(valid, to=7), [1], keepdims=0), to=6)


def nms_functions() -> list[onnx.FunctionProto]:
    """The bodies of the nodes upsnet::PaddedNms and upsnet::PaddedBatchedNms, and the functions that they call."""
    functions = (PaddedNms, PaddedBatchedNms, NmsCorners, NmsCandidates)
    return [function.to_function_proto() for function in functions]
