"""The compiled panoptic head as one operator of PyTorch, torch.ops.upsnet.panoptic_fusion (CPU and CUDA)."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from plugins_cuda.library import FLOAT_TYPES, NCHW, compiled, layout_of
from plugins_cuda.panoptic_fusion import reference


class Params(ctypes.Structure):
    """upsnet::panoptic_fusion::Params of launch.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("semantic", "boxes", "classes", "scores", "mask_logits")),
        *((name, ctypes.c_void_p) for name in ("counts", "sizes", "scales")),
        *((name, ctypes.c_void_p) for name in ("panoptic", "segments", "segment_count")),
        *((name, ctypes.c_int32) for name in ("semantic_type", "semantic_layout", "mask_type")),
        *((name, ctypes.c_int32) for name in ("batch", "num_stuff", "num_things", "height", "width")),
        *((name, ctypes.c_int32) for name in ("detections", "mask_size")),
        *((name, ctypes.c_float) for name in ("stuff_area_limit", "mask_overlap_threshold")),
    )


@torch.library.custom_op("upsnet::panoptic_fusion", mutates_args=())
def panoptic_fusion(
    semantic: Tensor,
    boxes: Tensor,
    classes: Tensor,
    scores: Tensor,
    mask_logits: Tensor,
    counts: Tensor,
    sizes: Tensor,
    scales: Tensor,
    num_stuff: int,
    stuff_area_limit: float,
    mask_overlap_threshold: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `plugins_cuda.panoptic_fusion`."""
    library = compiled(semantic.device)
    if library is None:
        return reference.panoptic_fusion(
            semantic, boxes, classes, scores, mask_logits, counts, sizes, scales,
            num_stuff, stuff_area_limit, mask_overlap_threshold,
        )  # fmt: skip
    layout = layout_of(semantic)
    if layout is None:
        semantic, layout = semantic.contiguous(), NCHW
    others = (boxes, classes, scores, mask_logits, counts, sizes, scales)
    boxes, classes, scores, mask_logits, counts, sizes, scales = (tensor.contiguous() for tensor in others)
    batch, channels, height, width = semantic.shape
    rows = boxes.shape[1]
    panoptic = semantic.new_empty(batch, 4 * height, 4 * width, dtype=torch.uint8)
    segments = semantic.new_empty(batch, num_stuff + rows, 7, dtype=torch.float32)
    segment_count = semantic.new_empty(batch, dtype=torch.int32)
    params = Params(
        semantic=semantic.data_ptr(),
        boxes=boxes.data_ptr(),
        classes=classes.data_ptr(),
        scores=scores.data_ptr(),
        mask_logits=mask_logits.data_ptr(),
        counts=counts.data_ptr(),
        sizes=sizes.data_ptr(),
        scales=scales.data_ptr(),
        panoptic=panoptic.data_ptr(),
        segments=segments.data_ptr(),
        segment_count=segment_count.data_ptr(),
        semantic_type=FLOAT_TYPES[semantic.dtype],
        semantic_layout=layout,
        mask_type=FLOAT_TYPES[mask_logits.dtype],
        batch=batch,
        num_stuff=num_stuff,
        num_things=channels - num_stuff,
        height=height,
        width=width,
        detections=rows,
        mask_size=mask_logits.shape[-1],
        stuff_area_limit=stuff_area_limit,
        mask_overlap_threshold=mask_overlap_threshold,
    )
    library.run("panoptic_fusion", params, semantic.device)
    return panoptic, segments, segment_count


@panoptic_fusion.register_fake
def _(semantic, boxes, classes, scores, mask_logits, counts, sizes, scales, num_stuff, limit, overlap):  # type: ignore[no-untyped-def]
    batch, _, height, width = semantic.shape
    return (
        semantic.new_empty(batch, 4 * height, 4 * width, dtype=torch.uint8),
        semantic.new_empty(batch, num_stuff + boxes.shape[1], 7, dtype=torch.float32),
        semantic.new_empty(batch, dtype=torch.int32),
    )
