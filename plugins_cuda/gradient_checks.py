"""Checks of the kernels of training, for kernel_suite.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from plugins_cuda.benchmark import inputs
from plugins_cuda.benchmark.cases import Variant
from plugins_cuda.benchmark.inputs import QUICK
from plugins_cuda.deform_conv.columns import deform_conv_columns, reference
from plugins_cuda.roi_align_fpn.backward import reference as roi_reference
from plugins_cuda.roi_align_fpn.backward import roi_align_fpn_backward


def check_deform_conv_columns(device: torch.device, variant: Variant, deterministic: bool) -> None:
    """Against the definition in float64, on the CPU; two offset groups, a mask. Deterministic: the same bits twice."""
    drawn = inputs.deformed(QUICK, spread=2.0, seed=1)
    offset = torch.cat([drawn["offset"], drawn["offset"].flip(3)], 1)
    height, width = offset.shape[2:]
    given: dict[str, Tensor] = {
        "x": variant.of(drawn["x"], device),
        "offset": offset.to(device),
        "mask": offset[:, ::2].sigmoid().to(device),
        "grad_columns": torch.randn(1, height, width, 9, QUICK.channels, generator=torch.Generator().manual_seed(1)).to(
            device, variant.dtype
        ),
    }
    steps: dict[str, Any] = {name: (1, 1) for name in ("stride", "padding", "dilation")} | {"kernel_size": (3, 3)}
    first, second = (deform_conv_columns(**given, **steps, deterministic=deterministic) for _ in range(2))
    wide: dict[str, Any] = {name: tensor.cpu().double() for name, tensor in given.items()}
    exact = reference.deform_conv_columns(**wide, **steps, deterministic=True)
    names = ("columns", "grad_x", "grad_offset", "grad_mask")
    for name, ours, again, wanted in zip(names, first, second, exact, strict=True):
        assert_close(name, ours, wanted)
        assert torch.equal(ours, again) or (name == "grad_x" and not deterministic), f"{name}: two runs differ"


def check_roi_align_backward(device: torch.device, variant: Variant, sampling_ratio: int) -> None:
    """Against the definition in float64, on the CPU; the same bits twice."""
    maps, rois = inputs.pyramid(QUICK, seed=1)
    rois = torch.cat([rois, inputs.elongated(QUICK)], dim=1)
    size, random = QUICK.output_size, torch.Generator().manual_seed(1)
    grad = torch.randn(1, rois.shape[1], QUICK.channels, size, size, generator=random).to(variant.dtype)
    options = (size, sampling_ratio, True, False, False)
    features = [variant.of(feature, device) for feature in maps]
    first, second = (roi_align_fpn_backward(features, rois.to(device), *options, grad.to(device)) for _ in range(2))
    exact = roi_reference.roi_align_fpn_backward([each.double() for each in maps], rois, *options, grad.double())
    for level, (ours, again, wanted) in enumerate(zip(first, second, exact, strict=True)):
        assert_close(f"P{2 + level}", ours, wanted)
        assert torch.equal(ours, again), f"P{2 + level}: two runs differ"


def assert_close(name: str, ours: Tensor, wanted: Tensor) -> None:
    error, largest = (ours.cpu().double() - wanted).abs().max().item(), wanted.abs().max().item()
    allowed = (1e-5 + torch.finfo(ours.dtype).eps) * largest
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"  # a NaN fails too
