"""BestAnchors in standard ONNX operators (opset 20). No anchor is made that is not chosen: its place follows from its
index."""

# mypy: ignore-errors
# (onnxscript is its own language in Python's clothes: what a checker reads here is not what happens)
from __future__ import annotations

import onnx
from onnxscript import FLOAT, INT32, INT64, script
from onnxscript import opset20 as op
from onnxscript.values import Opset

from plugins_cuda.boxes import MAX_LOG_RATIO

upsnet = Opset("upsnet", 1)


@script(upsnet, default_opset=op)
def BestLogitsOfLevel(level: FLOAT, parts: INT64, count: INT64):
    """Of one map the best logits [B, count] and their rows (those behind the last one are padding), and the deltas
    [B, N, 4] of all rows. parts: channels of logits and of deltas."""
    nothing = op.Constant(value_float=float("-inf"))
    logits, rows = op.Split(op.Transpose(level, perm=[0, 2, 3, 1]), parts, axis=3)
    logits = op.Reshape(logits, [0, -1])
    logits = op.Pad(op.Where(op.IsNaN(logits), nothing, logits), op.Concat([0, 0, 0], count, axis=0), nothing)
    scores, order = op.TopK(logits, count)
    deltas = op.Reshape(rows, [0, -1, 4])
    return scores, order, deltas


@script(upsnet, default_opset=op)
def BestAnchors(
    p2: FLOAT, p3: FLOAT, p4: FLOAT, p5: FLOAT, p6: FLOAT, base_anchors: FLOAT, sizes: INT32, top_n: int, inclusive: int
):
    nothing = op.Constant(value_float=float("-inf"))
    count = op.Reshape(op.Constant(value_int=top_n), [1])
    number = op.Shape(base_anchors, start=1, end=2)
    parts = op.Concat(number, number * 4, axis=0)
    scores2, order2, deltas2 = BestLogitsOfLevel(p2, parts, count)
    scores3, order3, deltas3 = BestLogitsOfLevel(p3, parts, count)
    scores4, order4, deltas4 = BestLogitsOfLevel(p4, parts, count)
    scores5, order5, deltas5 = BestLogitsOfLevel(p5, parts, count)
    scores6, order6, deltas6 = BestLogitsOfLevel(p6, parts, count)

    stacked = op.Concat([0, 5], count, axis=0)
    scores = op.Reshape(op.Concat(scores2, scores3, scores4, scores5, scores6, axis=1), stacked)
    order = op.Reshape(op.Concat(order2, order3, order4, order5, order6, axis=1), stacked)

    # Their deltas [B, 5, top_n, 4], out of all levels' rows, and one that is there where no level has any.
    lengths = op.Concat(
        op.Shape(deltas2, start=1, end=2), op.Shape(deltas3, start=1, end=2), op.Shape(deltas4, start=1, end=2),
        op.Shape(deltas5, start=1, end=2), op.Shape(deltas6, start=1, end=2), axis=0,
    )  # fmt: skip
    row = op.Min(order, op.Unsqueeze(lengths - 1, [1]))
    first = op.CumSum(lengths, 0, exclusive=1)
    some = op.Expand(op.Constant(value_float=0.0), op.Concat(op.Shape(p2, end=1), [1, 4], axis=0))
    every = op.Concat(deltas2, deltas3, deltas4, deltas5, deltas6, some, axis=1)
    deltas = op.GatherND(every, op.Unsqueeze(row + op.Unsqueeze(first, [1]), [-1]), batch_dims=1)
    shift, growth = op.Split(deltas, axis=-1, num_outputs=2)

    # Their anchors: row = (y * width + x) * anchors + anchor.
    widths = op.Concat(
        op.Shape(p2, start=3), op.Shape(p3, start=3), op.Shape(p4, start=3), op.Shape(p5, start=3),
        op.Shape(p6, start=3), axis=0,
    )  # fmt: skip
    width = op.Unsqueeze(op.Max(widths, 1), [1])  # nothing is divided by that of a level without cells
    cell = row / number
    y = cell / width
    x = op.Unsqueeze(cell - y * width, [-1])
    y = op.Unsqueeze(y, [-1])
    stride = op.Constant(value_floats=[4.0, 8.0, 16.0, 32.0, 64.0])
    corner = op.Cast(op.Concat(x, y, axis=-1), to=1) * op.Unsqueeze(stride, [1, 2])
    level = op.Unsqueeze(op.Constant(value_ints=[0, 1, 2, 3, 4]), [1])
    base = op.Gather(op.Reshape(base_anchors, [-1, 4]), row - cell * number + level * number)
    base_near, base_far = op.Split(base, axis=-1, num_outputs=2)
    near = corner + base_near
    far = corner + base_far

    # `boxes.decode` and `boxes.clip`.
    pixel = op.Cast(op.Constant(value_int=inclusive), to=1)
    sides = far - near + pixel
    centre = near + sides / 2.0 + shift * sides
    half = sides * op.Exp(op.Min(growth, MAX_LOG_RATIO)) / 2.0
    height_limit, width_limit = op.Split(op.Cast(sizes, to=1) - pixel, axis=1, num_outputs=2)
    limit = op.Unsqueeze(op.Concat(width_limit, height_limit, width_limit, height_limit, axis=1), [1, 2])
    boxes = op.Min(op.Max(op.Concat(centre - half, centre + half - pixel, axis=-1), 0.0), limit)
    real = op.Unsqueeze(scores, [-1]) > nothing
    return op.Where(real, boxes, 0.0), scores


def best_anchors_functions() -> list[onnx.FunctionProto]:
    """The body of node upsnet::BestAnchors, and the function that it calls."""
    return [BestLogitsOfLevel.to_function_proto(), BestAnchors.to_function_proto()]
