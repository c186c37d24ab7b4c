"""The order in which features and weights lie in memory."""

from __future__ import annotations

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of x [B, C, H, W] are innermost; False where they are so in both orders."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
