"""UPSNet's panoptic head: pruning, panoptic logits, the unknown class, the majority rule and the area limit."""

from __future__ import annotations

import torch
from torch import Tensor

from plugins_cuda.panoptic_fusion import reference


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
    mask_overlap_threshold: float = 0.3,
) -> tuple[Tensor, Tensor, Tensor]:
    """From semantic logits and detections to one label a pixel (UPSNet, CVPR 2019, section 3.2), at network resolution.

    semantic: float32 [B, S + T, h, w], logits at a quarter of the network resolution, the S stuff channels first.
    boxes: float32 [B, N, 4], x1 y1 x2 y2 in network pixels, inclusive corners, finite.
    classes: int64 [B, N], thing index 0..T-1. scores: float32 [B, N], descending.
    mask_logits: float32 [B, N, M, M], of the box's class. counts: int32 [B], how many detections are valid.
    sizes: int32 [B, 2], height and width inside the padding. scales: float32 [B], network pixels per original pixel.
    stuff_area_limit: stuff with less area than this, in original pixels, becomes void.
    mask_overlap_threshold: a detection is dropped when more than this part of its mask lies on the masks of its class
    that were accepted before it.

    Returns panoptic uint8 [B, 4h, 4w] (0 void, else 1 + row of segments), segments float32 [B, S + N, 7] (contiguous
    category, score, area, tight box x1 y1 x2 y2 with exclusive x2, y2; stuff in class order, then instances in score
    order, then zeros) and segment_count int32 [B].
    ValueError when S + N does not fit a byte.
    """
    batch, _, height, width = semantic.shape
    rows = num_stuff + boxes.shape[1]
    if rows > 255:
        raise ValueError(
            f"panoptic_fusion: {num_stuff} stuff classes + {boxes.shape[1]} detections do not fit a uint8 map (255)"
        )
    if not torch.onnx.is_in_onnx_export():
        return reference.panoptic_fusion(
            semantic, boxes, classes, scores, mask_logits, counts, sizes, scales,
            num_stuff, stuff_area_limit, mask_overlap_threshold,
        )  # fmt: skip
    panoptic, segments, segment_count = torch.onnx.ops.symbolic_multi_out(
        "upsnet::PanopticFusion",
        [semantic, boxes, classes, scores, mask_logits, counts, sizes, scales],
        {
            "num_stuff": num_stuff,
            "stuff_area_limit": float(stuff_area_limit),
            "mask_overlap_threshold": float(mask_overlap_threshold),
            "plugin_version": "1",
            "plugin_namespace": "",
        },
        dtypes=[torch.uint8, torch.float32, torch.int32],
        shapes=[(batch, 4 * height, 4 * width), (batch, rows, 7), (batch,)],
        version=1,
    )
    return panoptic, segments, segment_count
