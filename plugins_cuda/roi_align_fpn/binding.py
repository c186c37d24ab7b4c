"""The compiled RoIAlign as one operator of PyTorch, torch.ops.upsnet.roi_align_fpn (CPU and CUDA)."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from plugins_cuda.library import FLOAT_TYPES, NCHW, NHWC, compiled
from plugins_cuda.roi_align_fpn import reference


class Params(ctypes.Structure):
    """upsnet::roi_align_fpn::Params of launch.h."""

    _fields_ = (
        ("features", ctypes.c_void_p * 4),
        *((name, ctypes.c_void_p) for name in ("rois", "output")),
        *((name, ctypes.c_int32 * 4) for name in ("heights", "widths")),
        *((name, ctypes.c_int32) for name in ("type", "layout", "batch", "channels", "rois_per_image")),
        *((name, ctypes.c_int32) for name in ("output_size", "sampling_ratio", "is_aligned", "inclusive")),
        ("canonical_size", ctypes.c_float),
    )


@torch.library.custom_op("upsnet::roi_align_fpn", mutates_args=())
def roi_align_fpn(
    features: list[Tensor],
    rois: Tensor,
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
    canonical_size: float,
    inclusive: bool,
) -> Tensor:
    """See `plugins_cuda.roi_align_fpn`. Types without a kernel (float64) go through the reference."""
    like = features[0]
    library = compiled(like.device) if like.dtype in FLOAT_TYPES else None
    if library is None:
        return reference.roi_align_fpn(
            features, rois, output_size, sampling_ratio, aligned, canonical_size, inclusive
        ).contiguous()
    rois = rois.float().contiguous()
    features, layout = in_one_layout(features)
    batch, count = rois.shape[:2]
    channels = like.shape[1]
    output = like.new_empty(batch, count, channels, output_size, output_size)
    params = Params(
        features=(ctypes.c_void_p * 4)(*(feature.data_ptr() for feature in features)),
        rois=rois.data_ptr(),
        output=output.data_ptr(),
        heights=(ctypes.c_int32 * 4)(*(feature.shape[2] for feature in features)),
        widths=(ctypes.c_int32 * 4)(*(feature.shape[3] for feature in features)),
        type=FLOAT_TYPES[like.dtype],
        layout=layout,
        batch=batch,
        channels=channels,
        rois_per_image=count,
        output_size=output_size,
        sampling_ratio=sampling_ratio,
        is_aligned=aligned,
        inclusive=inclusive,
        canonical_size=canonical_size,
    )
    library.run("roi_align_fpn", params, like.device)
    return output


def in_one_layout(features: list[Tensor]) -> tuple[list[Tensor], int]:
    """The maps as they are when all are dense in the same order, else contiguous; and their layout."""
    channels_last = all(feature.is_contiguous(memory_format=torch.channels_last) for feature in features)
    if channels_last and not all(feature.is_contiguous() for feature in features):
        return features, NHWC
    return [feature.contiguous() for feature in features], NCHW


@roi_align_fpn.register_fake
def _(features, rois, output_size, sampling_ratio, aligned, canonical_size, inclusive):  # type: ignore[no-untyped-def]
    batch, count = rois.shape[:2]
    return features[0].new_empty(batch, count, features[0].shape[1], output_size, output_size)
