"""Non-maximum suppression whose outputs have a fixed size and a count."""

from __future__ import annotations

import torch
from torch import Tensor

from plugins_cuda.nms import binding


def nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    score_threshold: float,
    max_output: int,
    classes: Tensor | None = None,
    top_k: int = 0,
    inclusive: bool = False,
) -> tuple[Tensor, Tensor]:
    """Greedy NMS of every row of the batch on its own (fold levels into the batch).

    boxes: [B, N, 4], x1 y1 x2 y2 with exclusive x2, y2; inclusive=True: x2, y2 lie inside the box, whose widths and
    heights (and the intersections') then have the legacy + 1. Computed in float32.
    scores: [B, N]. Candidates have score > score_threshold (NaN never has). A box is suppressed when its IoU with a
    kept one is > iou_threshold. Equal scores go by the lower index.
    classes: int64 [B, N], any numbers: only boxes of the same class suppress each other. None: all do.
    top_k: only the top_k best candidates of a row compete, whatever their class; 0: all.

    Returns indices int64 [B, max_output] in descending score, padded with 0, and their count int32 [B]: index for index
    what torchvision's nms gives (with classes: its batched_nms done class by class, which does not round coordinates).
    Boxes without area, inverted boxes and boxes with NaN or infinite coordinates overlap nothing.
    ValueError for shapes, types and numbers outside of this. No gradient.
    """
    _check(boxes, scores, iou_threshold, score_threshold, max_output, classes, top_k)
    if not torch.onnx.is_in_onnx_export():
        return binding.nms(
            boxes.detach(), scores.detach(), classes, iou_threshold, score_threshold, max_output, top_k, inclusive
        )
    indices, counts = torch.onnx.ops.symbolic_multi_out(
        "upsnet::PaddedNms" if classes is None else "upsnet::PaddedBatchedNms",
        [boxes, scores] if classes is None else [boxes, scores, classes],
        {
            "iou_threshold": float(iou_threshold),
            "score_threshold": float(score_threshold),
            "max_output": max_output,
            "top_k": top_k,
            "inclusive": int(inclusive),
            "plugin_version": "1",
            "plugin_namespace": "",
        },
        dtypes=[torch.int64, torch.int32],
        shapes=[(boxes.shape[0], max_output), (boxes.shape[0],)],
        version=1,
    )
    return indices, counts


def _check(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    score_threshold: float,
    max_output: int,
    classes: Tensor | None,
    top_k: int,
) -> None:
    if boxes.ndim != 3 or boxes.shape[2] != 4 or not boxes.is_floating_point():
        raise ValueError(f"nms: boxes must be floating point [B, N, 4], got {boxes.dtype} {tuple(boxes.shape)}")
    if scores.shape != boxes.shape[:2] or not scores.is_floating_point():
        raise ValueError(
            f"nms: scores must be floating point [B, N] = {tuple(boxes.shape[:2])}, "
            f"got {scores.dtype} {tuple(scores.shape)}"
        )
    if classes is not None and (classes.shape != scores.shape or classes.dtype != torch.int64):
        raise ValueError(
            f"nms: classes must be int64 [B, N] = {tuple(scores.shape)}, got {classes.dtype} {tuple(classes.shape)}"
        )
    for name, tensor in (("scores", scores), ("classes", classes)):
        if tensor is not None and tensor.device != boxes.device:
            raise ValueError(f"nms: {name} must be on {boxes.device} as boxes are, got {tensor.device}")
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"nms: iou_threshold must lie in 0..1, got {iou_threshold}")
    if score_threshold != score_threshold:
        raise ValueError("nms: score_threshold must be a number, got NaN")
    if max_output < 0 or top_k < 0:
        raise ValueError(f"nms: max_output and top_k must be at least 0, got {max_output} and {top_k}")
