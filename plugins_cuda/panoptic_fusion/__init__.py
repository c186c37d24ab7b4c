"""UPSNet's panoptic head: pruning, panoptic logits, the unknown class, the majority rule and the area limit."""

from __future__ import annotations

import torch
from torch import Tensor

from plugins_cuda.panoptic_fusion import binding

MAX_ROWS = 255
MAX_MASK = 512
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


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

    semantic: [B, S + T, h, w], logits at a quarter of the network resolution, the S stuff channels first (S, T >= 1).
    boxes: float32 [B, N, 4], x1 y1 x2 y2 in network pixels, inclusive corners; inverted ones have no mask.
    classes: int64 [B, N], thing index 0..T-1. scores: float32 [B, N], descending; they are only copied.
    mask_logits: [B, N, M, M], of the box's class. counts: int32 [B], how many detections are valid.
    sizes: int32 [B, 2], height and width inside the padding. scales: float32 [B], network pixels per original pixel.
    stuff_area_limit: stuff with less area than this, in original pixels, becomes void.
    mask_overlap_threshold: a detection is dropped when more than this part of its mask lies on the masks of its class
    that were accepted before it.
    semantic (contiguous or channels_last) and mask_logits: float32, float16 or bfloat16; all arithmetic is float32.

    Returns panoptic uint8 [B, 4h, 4w] (0 void, else 1 + row of segments), segments float32 [B, S + N, 7] (contiguous
    category, score, area, tight box x1 y1 x2 y2 with exclusive x2, y2; stuff in class order, then instances in score
    order, then zeros) and segment_count int32 [B].

    Whatever the input holds, the compiled operators and the reference agree on it: logits are clamped to +-2^100, NaN
    counts as -2^100; a detection with a NaN coordinate or a class that does not exist is dropped; boxes are clamped to
    +-2^23, counts to 0..N, sizes to the map. (The ONNX body wants finite boxes, valid classes and counts.)
    ValueError when a shape or type is another one, or S + N does not fit a byte.
    """
    check(semantic, boxes, classes, scores, mask_logits, counts, sizes, scales, num_stuff)
    batch, _, height, width = semantic.shape
    rows = num_stuff + boxes.shape[1]
    if not torch.onnx.is_in_onnx_export():
        return binding.panoptic_fusion(
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


def check(
    semantic: Tensor,
    boxes: Tensor,
    classes: Tensor,
    scores: Tensor,
    mask_logits: Tensor,
    counts: Tensor,
    sizes: Tensor,
    scales: Tensor,
    num_stuff: int,
) -> None:
    """ValueError, which names the tensor, unless these are inputs of `panoptic_fusion`."""
    if semantic.ndim != 4 or boxes.ndim != 3 or mask_logits.ndim != 4:
        raise ValueError(
            "panoptic_fusion: semantic must be [B, S + T, h, w], boxes [B, N, 4] and mask_logits [B, N, M, M]; got "
            f"{tuple(semantic.shape)}, {tuple(boxes.shape)} and {tuple(mask_logits.shape)}"
        )
    batch, channels = semantic.shape[:2]
    rows, mask_size = mask_logits.shape[1:3]
    expected: dict[str, tuple[Tensor, tuple[int, ...], tuple[torch.dtype, ...]]] = {
        "semantic": (semantic, tuple(semantic.shape), FLOATS),
        "boxes": (boxes, (batch, rows, 4), (torch.float32,)),
        "classes": (classes, (batch, rows), (torch.int64,)),
        "scores": (scores, (batch, rows), (torch.float32,)),
        "mask_logits": (mask_logits, (batch, rows, mask_size, mask_size), FLOATS),
        "counts": (counts, (batch,), (torch.int32,)),
        "sizes": (sizes, (batch, 2), (torch.int32,)),
        "scales": (scales, (batch,), (torch.float32,)),
    }
    for name, (tensor, shape, types) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"panoptic_fusion: {name} must have shape {shape}, not {tuple(tensor.shape)}")
        if tensor.dtype not in types:
            names = " or ".join(str(dtype).removeprefix("torch.") for dtype in types)
            raise ValueError(f"panoptic_fusion: {name} must be {names}, not {str(tensor.dtype).removeprefix('torch.')}")
        if tensor.device != semantic.device:
            raise ValueError(f"panoptic_fusion: {name} is on {tensor.device}, semantic on {semantic.device}")
    if not 1 <= num_stuff < channels:
        raise ValueError(
            f"panoptic_fusion: num_stuff is {num_stuff}, but semantic has {channels} channels, stuff and things"
        )
    if mask_size > MAX_MASK or (rows > 0 and mask_size == 0):
        raise ValueError(f"panoptic_fusion: mask_logits has {mask_size} cells a side, not 1 to {MAX_MASK}")
    if num_stuff + rows > MAX_ROWS:
        raise ValueError(
            f"panoptic_fusion: {num_stuff} stuff classes + {rows} detections do not fit a uint8 map ({MAX_ROWS})"
        )
