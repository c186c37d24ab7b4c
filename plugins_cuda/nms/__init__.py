"""Non-maximum suppression whose outputs have a fixed size and a count."""

from __future__ import annotations

import torch
from torch import Tensor

from plugins_cuda.nms import reference


def nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, max_output: int
) -> tuple[Tensor, Tensor]:
    """Greedy, class-agnostic NMS of every row of the batch on its own (fold levels or classes into the batch).

    boxes: float32 [B, N, 4], x1 y1 x2 y2 with exclusive x2, y2; inverted boxes overlap nothing.
    scores: float32 [B, N]. Candidates have score > score_threshold (NaN never has). A box is suppressed when its
    IoU with a kept one is > iou_threshold. Equal scores go by the lower index.
    Returns indices int64 [B, max_output] in descending score, padded with 0, and their count int32 [B].
    """
    if not torch.onnx.is_in_onnx_export():
        return reference.nms(boxes, scores, iou_threshold, score_threshold, max_output)
    indices, counts = torch.onnx.ops.symbolic_multi_out(
        "upsnet::PaddedNms",
        [boxes, scores],
        {
            "iou_threshold": float(iou_threshold),
            "score_threshold": float(score_threshold),
            "max_output": max_output,
            "plugin_version": "1",
            "plugin_namespace": "",
        },
        dtypes=[torch.int64, torch.int32],
        shapes=[(boxes.shape[0], max_output), (boxes.shape[0],)],
        version=1,
    )
    return indices, counts
