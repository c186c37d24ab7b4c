"""Rows that are padding, left out where a runtime can do so.

A network has rows for as many detections as there may be; most are padding, and the mask head works as long on these as
on others. Here and in TensorRT all rows stay, as shapes must not depend on data. ONNX Runtime's kernels on a CPU
(onnxruntime.cpp) keep no more of them than the image with the most detections needs.
"""

from __future__ import annotations

import torch
from torch import Tensor


def used_rows(rows: Tensor, counts: Tensor) -> Tensor:
    """The first K' of rows [B, K, ...], of which counts[b] (int32 [B]) mean something in image b: [B, K', ...].

    K' is K, or the largest count, but one at least.
    """
    if torch.onnx.is_in_onnx_export():
        return torch.onnx.ops.symbolic(
            "upsnet::UsedRows", (rows, counts), dtype=rows.dtype, shape=rows.shape, version=1
        )
    return rows


def all_rows(results: Tensor, like: Tensor) -> Tensor:
    """What was made of used rows, [B * K', ...], as [B, K, ...] with the B and K of `like` [B, K, ...].

    The rows that were left out are zeros.
    """
    shape = [*like.shape[:2], *results.shape[1:]]
    if torch.onnx.is_in_onnx_export():
        return torch.onnx.ops.symbolic("upsnet::AllRows", (results, like), dtype=results.dtype, shape=shape, version=1)
    return results.reshape(shape)
