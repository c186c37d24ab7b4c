"""RoIAlign of every box on the pyramid level that its size asks for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plugins_cuda.roi_align_fpn import bag, reference
from plugins_cuda.sampling import trains_on_cpu


def roi_align_fpn(
    features: Sequence[Tensor],
    rois: Tensor,
    output_size: int,
    sampling_ratio: int = 2,
    aligned: bool = True,
    canonical_size: float = 224.0,
    inclusive: bool = False,
) -> Tensor:
    """Pool boxes from P2..P5 (FPN, CVPR 2017; RoIAlign, Mask R-CNN, ICCV 2017).

    features: four maps [B, C, H/s, W/s] at strides 4, 8, 16, 32.
    rois: [B, R, 4], x1 y1 x2 y2 in network pixels; padded rows are boxes like any other.
    aligned: torchvision's half-pixel shift (False: the legacy rule, boxes of at least one pixel of the map).
    canonical_size: side in pixels of the smallest square box that belongs to P4.
    inclusive: the level rule takes widths and heights with + 1.
    Returns [B, R, C, S, S] in the features' type. ValueError unless there are four features.
    """
    if len(features) != 4:
        raise ValueError(f"roi_align_fpn takes the four levels P2..P5, got {len(features)} features")
    if not torch.onnx.is_in_onnx_export():
        definition = bag if trains_on_cpu(*features) else reference
        return definition.roi_align_fpn(features, rois, output_size, sampling_ratio, aligned, canonical_size, inclusive)
    return torch.onnx.ops.symbolic(
        "upsnet::RoiAlignFpn",
        [*features, rois],
        {
            "output_size": output_size,
            "sampling_ratio": sampling_ratio,
            "coordinate_transformation_mode": "half_pixel" if aligned else "output_half_pixel",
            "canonical_size": float(canonical_size),
            "inclusive": int(inclusive),
            "plugin_version": "1",
            "plugin_namespace": "",
        },
        dtype=features[0].dtype,
        shape=(rois.shape[0], rois.shape[1], features[0].shape[1], output_size, output_size),
        version=1,
    )
