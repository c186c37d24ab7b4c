"""RoIAlign of every box on the pyramid level that its size asks for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plugins_cuda.roi_align_fpn import bag, binding, reference
from plugins_cuda.sampling import wants_gradient

MAX_SAMPLES = 1024


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

    features: four maps [B, C, H/s, W/s] at strides 4, 8, 16, 32, of one floating type; contiguous or channels-last.
    rois: [B, R, 4], x1 y1 x2 y2 in network pixels, taken as float32; padded rows are boxes like any other. A box that
        lies outside of its map, or has a NaN or infinite coordinate, gives zeros.
    sampling_ratio: samples a bin in each direction, at least 1.
    aligned: torchvision's half-pixel shift (False: the legacy rule, boxes of at least one pixel of the map).
    canonical_size: side in pixels of the smallest square box that belongs to P4.
    inclusive: the level rule takes widths and heights with + 1.
    Returns [B, R, C, S, S], contiguous, in the features' type; coordinates, weights and sums are float32. Gradients go
    to the features alone. ValueError when the inputs do not fit together.
    """
    _check(features, rois, output_size, sampling_ratio)
    rois = rois.float()
    if not torch.onnx.is_in_onnx_export():
        _check_sizes(features, rois)
        options = (output_size, sampling_ratio, aligned, float(canonical_size), inclusive)
        if not wants_gradient(*features):
            return binding.roi_align_fpn(list(features), rois.detach(), *options)
        if rois.device.type == "cpu" and features[0].dtype == rois.dtype:  # a bag takes one type alone
            return bag.roi_align_fpn(features, rois, *options)
        return reference.roi_align_fpn(features, rois.detach(), *options)
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


def _check(features: Sequence[Tensor], rois: Tensor, output_size: int, sampling_ratio: int) -> None:
    if len(features) != 4:
        raise ValueError(f"roi_align_fpn takes the four levels P2..P5, got {len(features)} features")
    for index, feature in enumerate(features):
        if feature.ndim != 4 or not feature.is_floating_point():
            raise ValueError(f"features[{index}] must be [B, C, H, W] of a floating type, got {_text(feature)}")
        if feature.dtype != features[0].dtype or feature.device != features[0].device:
            raise ValueError(f"features[{index}] must be like features[0], {_text(features[0])}, got {_text(feature)}")
    if rois.ndim != 3 or rois.shape[2] != 4 or not rois.is_floating_point() or rois.device != features[0].device:
        raise ValueError(f"rois must be [B, R, 4], floating, on {features[0].device}, got {_text(rois)}")
    if output_size < 1 or sampling_ratio < 1:
        raise ValueError(
            f"output_size and sampling_ratio must be at least 1 (no adaptive sampling), got {output_size} and "
            f"{sampling_ratio}"
        )
    if output_size * sampling_ratio > MAX_SAMPLES:
        raise ValueError(
            f"output_size * sampling_ratio must be at most {MAX_SAMPLES}, got {output_size} * {sampling_ratio}"
        )


def _check_sizes(features: Sequence[Tensor], rois: Tensor) -> None:
    """Not while exporting to ONNX, where sizes are symbols that must not be compared."""
    for index, feature in enumerate(features):
        if feature.shape[:2] != features[0].shape[:2]:
            raise ValueError(
                f"features[{index}] must have the batch and channels of features[0], {_text(features[0])}, "
                f"got {_text(feature)}"
            )
    if rois.shape[0] != features[0].shape[0]:
        raise ValueError(f"rois must have the batch of features[0], {_text(features[0])}, got {_text(rois)}")


def _text(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
