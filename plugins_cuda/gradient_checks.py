"""Checks of the kernels of training, for kernel_suite.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from plugins_cuda.benchmark import inputs
from plugins_cuda.benchmark.cases import Variant
from plugins_cuda.benchmark.inputs import QUICK
from plugins_cuda.deform_conv.columns import deform_conv_columns, reference


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
        error, largest = (ours.cpu().double() - wanted).abs().max().item(), wanted.abs().max().item()
        allowed = (1e-5 + torch.finfo(ours.dtype).eps) * largest
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"  # a NaN fails too
        assert torch.equal(ours, again) or (name == "grad_x" and not deterministic), f"{name}: two runs differ"
