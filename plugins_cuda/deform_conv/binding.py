"""The compiled deformable convolution as one operator of PyTorch, torch.ops.upsnet.deform_conv (CPU and CUDA)."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from plugins_cuda.deform_conv import reference
from plugins_cuda.library import FLOAT_TYPES, NCHW, NHWC, compiled, layout_of

POINTERS = ("input", "offset", "mask", "weight", "bias", "output")
INTEGERS = (
    *("type", "layout", "batch", "channels", "height", "width", "out_channels", "out_height", "out_width"),
    *("kernel_h", "kernel_w", "stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w"),
    *("groups", "offset_groups"),
)


class Params(ctypes.Structure):
    """upsnet::deform_conv::Params of launch.h."""

    _fields_ = (*((name, ctypes.c_void_p) for name in POINTERS), *((name, ctypes.c_int32) for name in INTEGERS))


def empty_output(x: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    """[B, O, Ho, Wo] in the type of x, and in its memory format where that is channels_last."""
    out = torch.channels_last if layout_of(x) == NHWC else torch.contiguous_format
    shape = (x.shape[0], weight.shape[0], offset.shape[2], offset.shape[3])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=out)


@torch.library.custom_op("upsnet::deform_conv", mutates_args=())
def deform_conv(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """See `plugins_cuda.deform_conv`; stride, padding and dilation are (h, w) pairs, and everything is checked."""
    out = empty_output(x, offset, weight)
    library = compiled(x.device) if x.dtype in FLOAT_TYPES else None
    if library is None:
        return out.copy_(reference.deform_conv(x, offset, weight, bias, stride, padding, dilation, mask))
    layout = layout_of(x)
    x = x.contiguous() if layout is None else x
    weight, offset = weight.contiguous(), offset.float().contiguous()
    bias = None if bias is None else bias.float().contiguous()
    mask = None if mask is None else mask.float().contiguous()
    taps = weight.shape[2] * weight.shape[3]
    params = Params(
        *(None if t is None else t.data_ptr() for t in (x, offset, mask, weight, bias, out)),
        FLOAT_TYPES[x.dtype],
        NCHW if layout is None else layout,
        *x.shape,
        *out.shape[1:],
        *weight.shape[2:],
        *stride,
        *padding,
        *dilation,
        x.shape[1] // weight.shape[1],
        offset.shape[1] // (2 * taps),
    )
    library.run("deform_conv", params, x.device)
    return out


@deform_conv.register_fake
def _(x, offset, weight, bias, mask, stride, padding, dilation):  # type: ignore[no-untyped-def]
    return empty_output(x, offset, weight)
