"""The compiled NMS as one operator of PyTorch, torch.ops.upsnet.nms (CPU and CUDA)."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from plugins_cuda.library import compiled
from plugins_cuda.nms import reference


class Params(ctypes.Structure):
    """upsnet::nms::Params of launch.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("boxes", "scores", "classes", "indices", "counts")),
        *((name, ctypes.c_int32) for name in ("batch", "num_boxes", "max_output", "top_k", "inclusive")),
        *((name, ctypes.c_float) for name in ("iou_threshold", "score_threshold")),
    )


@torch.library.custom_op("upsnet::nms", mutates_args=())
def nms(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor | None,
    iou_threshold: float,
    score_threshold: float,
    max_output: int,
    top_k: int,
    inclusive: bool,
) -> tuple[Tensor, Tensor]:
    """See `plugins_cuda.nms`."""
    library = compiled(boxes.device)
    if library is None:
        return reference.nms(boxes, scores, iou_threshold, score_threshold, max_output, classes, top_k, inclusive)
    boxes, scores = boxes.float().contiguous(), scores.float().contiguous()
    classes = None if classes is None else classes.long().contiguous()
    batch, count = scores.shape
    indices = torch.empty(batch, max_output, dtype=torch.int64, device=boxes.device)
    counts = torch.empty(batch, dtype=torch.int32, device=boxes.device)
    params = Params(
        boxes=boxes.data_ptr(),
        scores=scores.data_ptr(),
        classes=None if classes is None else classes.data_ptr(),
        indices=indices.data_ptr(),
        counts=counts.data_ptr(),
        batch=batch,
        num_boxes=count,
        max_output=max_output,
        top_k=top_k,
        inclusive=inclusive,
        iou_threshold=iou_threshold,
        score_threshold=score_threshold,
    )
    library.run("nms", params, boxes.device)
    return indices, counts


@nms.register_fake
def _(boxes, scores, classes, iou_threshold, score_threshold, max_output, top_k, inclusive):  # type: ignore[no-untyped-def]
    batch = boxes.shape[0]
    return boxes.new_empty(batch, max_output, dtype=torch.int64), boxes.new_empty(batch, dtype=torch.int32)
