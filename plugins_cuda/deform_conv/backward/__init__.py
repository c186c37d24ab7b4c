"""The gradient of deformable convolution v1 and v2: autograd of torch.ops.upsnet.deform_conv."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from plugins_cuda.deform_conv.backward import reference
from plugins_cuda.deform_conv.backward.schema import SCHEMA
from plugins_cuda.pytorch import gradient_operator

deform_conv_backward = gradient_operator(SCHEMA, reference.deform_conv_backward)


def gradient(values: Mapping[str, Any], grad_output: Tensor) -> dict[str, Tensor]:
    """See pytorch.Gradient."""
    tensors = (values[name] for name in ("x", "offset", "weight", "mask"))
    steps = (values[name] for name in ("stride", "padding", "dilation"))
    names = ("x", "offset", "weight", "mask")
    found = dict(zip(names, deform_conv_backward(*tensors, grad_output, *steps), strict=True))
    if values["bias"] is not None:
        found["bias"] = grad_output.sum((0, 2, 3), dtype=found["offset"].dtype)
    return {name: each.to(values[name].dtype) for name, each in found.items() if values[name] is not None}
