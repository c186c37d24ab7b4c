"""Top-k with a fixed order of ties. It needs no room of its own: ONNX's TopK is this already."""

from __future__ import annotations

import torch
from torch import Tensor


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest of [..., N >= k] along the last axis, in (score descending, index ascending) order.

    torch.topk leaves the order of ties open; ONNX's TopK, which it becomes at export, fixes it as we do.
    """
    if torch.onnx.is_in_onnx_export():
        values, indices = torch.topk(scores, k, dim=-1)
        return values, indices
    values, indices = torch.sort(scores, dim=-1, descending=True, stable=True)
    return values[..., :k], indices[..., :k]
