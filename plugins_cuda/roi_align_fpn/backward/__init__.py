"""The gradient of RoIAlign over a feature pyramid: autograd of torch.ops.upsnet.roi_align_fpn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from plugins_cuda.pytorch import gradient_operator
from plugins_cuda.roi_align_fpn.backward import reference
from plugins_cuda.roi_align_fpn.backward.schema import SCHEMA

roi_align_fpn_backward = gradient_operator(SCHEMA, reference.roi_align_fpn_backward)


def gradient(values: Mapping[str, Any], grad_output: Tensor) -> dict[str, list[Tensor]]:
    """See pytorch.Gradient."""
    names = ("features", "rois", "output_size", "sampling_ratio", "aligned", "inclusive", "rounded_levels")
    return {"features": list(roi_align_fpn_backward(*map(values.get, names), grad_output))}
