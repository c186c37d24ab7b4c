"""RoiAlignFpn in standard ONNX operators (opset 20): every box is pooled once, on its own level."""

# mypy: ignore-errors
# (onnxscript is its own language in Python's clothes: what a checker reads here is not what happens)
from __future__ import annotations

import onnx
from onnxscript import FLOAT, script
from onnxscript import opset20 as op
from onnxscript.values import Opset


@script(Opset("upsnet", 1), default_opset=op)
def RoiAlignFpn(
    p2: FLOAT,
    p3: FLOAT,
    p4: FLOAT,
    p5: FLOAT,
    rois: FLOAT,
    output_size: int,
    sampling_ratio: int,
    coordinate_transformation_mode: str,
    inclusive: int,
    rounded_levels: int = 0,
) -> FLOAT:
    # The maps may be float16 or bfloat16; everything in between is float32.
    # A box with a NaN or infinite coordinate gives zeros; `reference.without_nonfinite`. (x - x is NaN for those.)
    finite = op.ReduceSum(rois - rois, [-1], keepdims=1) == 0.0
    boxes = op.Where(finite, rois, -1e6)

    # The level of every box [B, R]; `reference.assign_levels`.
    x1, y1, x2, y2 = op.Split(boxes, axis=-1, num_outputs=4)
    extra = op.Cast(op.Constant(value_int=inclusive), to=1)
    area = op.Relu(x2 - x1 + extra) * op.Relu(y2 - y1 + extra)
    rounded = op.Cast(op.Constant(value_int=rounded_levels), to=9)
    ratio = op.Squeeze(op.Sqrt(area), [-1]) / 224.0 + op.Where(rounded, 0.0, 1e-6)
    on_p3 = ratio >= op.Where(rounded, 0.499999940395355224609375, 0.5)
    on_p4 = ratio >= op.Where(rounded, 0.999999940395355224609375, 1.0)
    on_p5 = ratio >= op.Where(rounded, 1.99999964237213134765625, 2.0)
    level = op.Cast(on_p3, to=7) + op.Cast(on_p4, to=7) + op.Cast(on_p5, to=7)

    # Where samples are counted: `reference.countable`.
    counted = op.Constant(value_int=sampling_ratio) == 0
    unlimited = op.Constant(value_float=float("inf"))
    longest, shortest = op.Where(counted, 32768.0, unlimited), op.Where(counted, 0.0, -unlimited)
    near, far = op.Split(boxes, axis=-1, num_outputs=2)
    boxes = op.Concat(near, op.Max(op.Min(far, near + longest), near + shortest), axis=-1)

    size = op.Reshape(op.Constant(value_int=output_size), [1])
    shape = op.Concat(op.Shape(rois, end=2), op.Shape(p2, start=1, end=2), size, size, axis=0)
    pooled = op.ConstantOfShape(shape)

    # [K, 2] (image, row) of the boxes of one level; their pooled features go to these places.
    place = op.Transpose(op.NonZero(level == 0), perm=[1, 0])
    image, _row = op.Split(place, axis=1, num_outputs=2)
    part = op.RoiAlign(
        op.Cast(p2, to=1), op.GatherND(boxes, place), op.Squeeze(image, [1]),
        coordinate_transformation_mode=coordinate_transformation_mode, sampling_ratio=sampling_ratio,
        output_height=output_size, output_width=output_size, spatial_scale=0.25,
    )  # fmt: skip
    pooled = op.ScatterND(pooled, place, part)

    place = op.Transpose(op.NonZero(level == 1), perm=[1, 0])
    image, _row = op.Split(place, axis=1, num_outputs=2)
    part = op.RoiAlign(
        op.Cast(p3, to=1), op.GatherND(boxes, place), op.Squeeze(image, [1]),
        coordinate_transformation_mode=coordinate_transformation_mode, sampling_ratio=sampling_ratio,
        output_height=output_size, output_width=output_size, spatial_scale=0.125,
    )  # fmt: skip
    pooled = op.ScatterND(pooled, place, part)

    place = op.Transpose(op.NonZero(level == 2), perm=[1, 0])
    image, _row = op.Split(place, axis=1, num_outputs=2)
    part = op.RoiAlign(
        op.Cast(p4, to=1), op.GatherND(boxes, place), op.Squeeze(image, [1]),
        coordinate_transformation_mode=coordinate_transformation_mode, sampling_ratio=sampling_ratio,
        output_height=output_size, output_width=output_size, spatial_scale=0.0625,
    )  # fmt: skip
    pooled = op.ScatterND(pooled, place, part)

    place = op.Transpose(op.NonZero(level == 3), perm=[1, 0])
    image, _row = op.Split(place, axis=1, num_outputs=2)
    part = op.RoiAlign(
        op.Cast(p5, to=1), op.GatherND(boxes, place), op.Squeeze(image, [1]),
        coordinate_transformation_mode=coordinate_transformation_mode, sampling_ratio=sampling_ratio,
        output_height=output_size, output_width=output_size, spatial_scale=0.03125,
    )  # fmt: skip
    return op.CastLike(op.ScatterND(pooled, place, part), p2)


def roi_align_fpn_function() -> onnx.FunctionProto:
    """The body of node upsnet::RoiAlignFpn."""
    return RoiAlignFpn.to_function_proto()
