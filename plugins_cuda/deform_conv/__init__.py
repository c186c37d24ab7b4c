"""Deformable convolution v1."""

from __future__ import annotations

import torch
from torch import Tensor

from plugins_cuda.deform_conv import bag, reference
from plugins_cuda.sampling import trains_on_cpu


def deform_conv(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int = 1,
    dilation: int = 1,
) -> Tensor:
    """Convolution whose taps are shifted by an offset field (Dai et al., ICCV 2017), without a modulation mask.

    x: [B, C, H, W]. offset: [B, 2 k k, Ho, Wo], (dy, dx) of every tap, row by row. weight: [O, C, k, k].
    bias: [O] or None. Bilinear samples, zero outside the map. Returns [B, O, Ho, Wo].
    ValueError unless there is one group of channels and one of offsets.
    """
    rows, columns = weight.shape[2:]
    if weight.shape[1] != x.shape[1] or offset.shape[1] != 2 * rows * columns:
        raise ValueError(
            f"deform_conv takes one group: weight {tuple(weight.shape)} wants {weight.shape[1]} channels of x "
            f"(got {x.shape[1]}) and {2 * rows * columns} channels of offset (got {offset.shape[1]})"
        )
    if not torch.onnx.is_in_onnx_export():
        definition = bag if trains_on_cpu(x, offset, weight) else reference
        return definition.deform_conv(x, offset, weight, bias, stride, padding, dilation)
    bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
    return torch.onnx.ops.symbolic(
        "upsnet::DeformConv2d",
        [x, offset, weight, bias],
        {
            "strides": [stride, stride],
            "pads": [padding] * 4,
            "dilations": [dilation, dilation],
            "plugin_version": "1",
            "plugin_namespace": "",
        },
        dtype=x.dtype,
        shape=(x.shape[0], weight.shape[0], offset.shape[2], offset.shape[3]),
        version=1,
    )
