"""Deformable convolution v1 and v2."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plugins_cuda.deform_conv import bag, binding, reference
from plugins_cuda.sampling import wants_gradient

Pair = int | Sequence[int]


def deform_conv(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 1,
    dilation: Pair = 1,
    mask: Tensor | None = None,
) -> Tensor:
    """Convolution whose taps are shifted by an offset field (Dai et al., ICCV 2017) and, v2, weighted by a modulation
    mask (Zhu et al., CVPR 2019).

    x: [B, C, H, W], float32, float16 or bfloat16; contiguous or channels_last.
    offset: [B, 2 G kh kw, Ho, Wo] in pixels of x, (dy, dx) of every tap, row by row, for each of G offset groups.
    weight: [O, C / groups, kh, kw], type of x. bias: [O] or None.
    stride, padding, dilation: one number, or (vertical, horizontal). mask: [B, G kh kw, Ho, Wo] or None (v1).
    Samples are bilinear, zero outside the map; a NaN or infinite offset samples zero. Offsets, mask, bias, sampling
    and sums are float32 whatever the type of x; for 16-bit types the samples are rounded to it before the product.
    Returns [B, O, Ho, Wo] in the type and memory format of x. ValueError when the tensors do not belong together.
    """
    stride, padding, dilation = _pair("stride", stride, 1), _pair("padding", padding, 0), _pair("dilation", dilation, 1)
    groups, offset_groups = _check(x, offset, weight, bias, stride, padding, dilation, mask)
    if torch.onnx.is_in_onnx_export():
        return _node(x, offset, weight, bias, stride, padding, dilation, mask, groups, offset_groups)
    if not wants_gradient(x, offset, weight, bias, mask):
        return binding.deform_conv(x, offset, weight, bias, mask, stride, padding, dilation)
    # A bag takes one type alone: not half features with float32 offsets, as under autocast.
    if x.device.type == "cpu" and x.dtype == offset.dtype and mask is None and groups == offset_groups == 1:
        return bag.deform_conv(x, offset, weight, bias, stride, padding, dilation)
    return reference.deform_conv(x, offset, weight, bias, stride, padding, dilation, mask)


def _pair(name: str, value: Pair, least: int) -> list[int]:
    pair = [value, value] if isinstance(value, int) else list(value)
    if len(pair) != 2 or min(pair) < least:
        raise ValueError(f"deform_conv: {name} must be a number, or (vertical, horizontal), >= {least}, got {value}")
    return pair


def _check(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    mask: Tensor | None,
) -> tuple[int, int]:
    """Groups of channels and groups of offsets."""

    def refuse(name: str, tensor: Tensor, wanted: str) -> ValueError:
        return ValueError(f"deform_conv: {name} must be {wanted}, got {tensor.dtype} {tuple(tensor.shape)}")

    if x.ndim != 4 or not x.dtype.is_floating_point or 0 in x.shape[1:]:
        raise refuse("x", x, "floating-point [B, C, H, W] with something in it")
    if weight.ndim != 4 or 0 in weight.shape or weight.dtype != x.dtype:
        raise refuse("weight", weight, f"{x.dtype} [O, C / groups, kh, kw], the type of x")
    channels, out_channels, taps = x.shape[1], weight.shape[0], weight.shape[2] * weight.shape[3]
    groups = channels // weight.shape[1]
    if groups * weight.shape[1] != channels or out_channels % groups:
        raise refuse("weight", weight, f"[O, {channels} / groups, kh, kw] with groups that divide O")
    if bias is not None and bias.shape != (out_channels,):
        raise refuse("bias", bias, f"[{out_channels}], one number for each output channel of weight")
    size = [
        (x.shape[2 + axis] + 2 * padding[axis] - dilation[axis] * (weight.shape[2 + axis] - 1) - 1) // stride[axis] + 1
        for axis in (0, 1)
    ]
    if size[0] < 1 or size[1] < 1:
        raise refuse("x", x, f"large enough for a kernel of {tuple(weight.shape[2:])} with padding {padding}")
    offset_groups = offset.shape[1] // (2 * taps) if offset.ndim == 4 else 0
    if offset_groups < 1 or channels % offset_groups or offset.shape[1] != 2 * taps * offset_groups:
        raise refuse("offset", offset, f"[B, G * {2 * taps}, Ho, Wo], where G divides the {channels} channels of x")
    for name, tensor, planes in (("offset", offset, 2 * taps), ("mask", mask, taps)):
        if tensor is not None and tuple(tensor.shape) != (x.shape[0], offset_groups * planes, *size):
            raise refuse(name, tensor, f"{[x.shape[0], offset_groups * planes, *size]}")
    return groups, offset_groups


def _node(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    mask: Tensor | None,
    groups: int,
    offset_groups: int,
) -> Tensor:
    """Node upsnet::DeformConv2d, or with a mask upsnet::ModulatedDeformConv2d."""
    bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
    inputs = [x, offset.float(), weight, bias.float()]
    return torch.onnx.ops.symbolic(
        "upsnet::DeformConv2d" if mask is None else "upsnet::ModulatedDeformConv2d",
        inputs if mask is None else [*inputs, mask.float()],
        {
            "strides": stride,
            "pads": [*padding, *padding],
            "dilations": dilation,
            "group": groups,
            "offset_group": offset_groups,
            "plugin_version": "1",
            "plugin_namespace": "",
        },
        dtype=x.dtype,
        shape=(x.shape[0], weight.shape[0], offset.shape[2], offset.shape[3]),
        version=1,
    )
