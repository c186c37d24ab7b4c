"""What NVIDIA publishes as its GPUs' limits, and what the one in this machine does."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import torch

from eval.profiling.roofline import Roofline
from upsnet.errors import InputError

# Of the vendor's datasheets: dense products (half of the figure "with sparsity" where that alone is printed) in TFLOP/s
# of float32 without tensor cores, TF32, fp16 and bf16 (accumulated in float32), fp8, TOP/s of int8; GB/s of the memory.
# 0: the GPU has no such products (the T4's half is fp16 alone).
PUBLISHED = {
    "b200": ("NVIDIA B200", 75, 1100, 2250, 4500, 4500, 8000),
    "h200": ("NVIDIA H200 SXM", 67, 494.5, 989.5, 1979, 1979, 4800),
    "h100": ("NVIDIA H100 SXM", 67, 494.5, 989.5, 1979, 1979, 3350),
    "a100": ("NVIDIA A100 SXM 80GB", 19.5, 156, 312, 0, 624, 2039),
    "l40s": ("NVIDIA L40S", 91.6, 183, 362, 733, 733, 864),
    "l4": ("NVIDIA L4", 30.3, 60, 121, 242.5, 242.5, 300),
    "rtx4090": ("NVIDIA GeForce RTX 4090", 82.6, 82.6, 165.2, 330.3, 660.6, 1008),
    "t4": ("NVIDIA T4", 8.1, 0, 65, 0, 130, 320),
}
SIDE = 4096  # of the matrices
MEMORY = 2**28  # bytes
TRIES = 20


def find_gpu(name: str) -> Roofline:
    """The published limits of a GPU; "h200" and "NVIDIA H200" are one. InputError for one that is not listed."""
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word not in ("nvidia", "geforce", "tesla")]
    starts = ["".join(words[:count]) for count in range(1, len(words) + 1)]
    key = next((start for start in starts if start in PUBLISHED), None)
    if key is None:
        raise InputError(f"--gpu {name}: its limits are not known here; known are {', '.join(PUBLISHED)}")
    title, fp32, tf32, half, fp8, int8, gb_per_s = PUBLISHED[key]
    tera = {"gflops": fp32, "tf32_gflops": tf32, "half_gflops": half, "fp8_gflops": fp8, "int8_gops": int8}
    return Roofline(
        **{key: 1e3 * value for key, value in tera.items()}, gb_per_s=gb_per_s, source=f"{title}, as published"
    )


def measure_gpu(device: torch.device) -> Roofline:
    """This machine's GPU: the best of a few products of matrices and copies, by PyTorch; about a second."""
    products = torch.backends.cuda.matmul
    before = products.allow_tf32
    try:
        products.allow_tf32 = False
        gflops = _product(torch.float32, device)
        products.allow_tf32 = True
        tf32 = _product(torch.float32, device)
    finally:
        products.allow_tf32 = before
    half = max(_product(kind, device) for kind in (torch.float16, torch.bfloat16))
    a = torch.ones(SIDE, SIDE, dtype=torch.int8, device=device)
    b = a.t().contiguous().t()  # as the integer product wants its second matrix
    int8 = 2 * SIDE**3 / _seconds(lambda: torch._int_mm(a, b), device) / 1e9
    source, target = (torch.zeros(MEMORY, dtype=torch.uint8, device=device) for _ in range(2))
    seconds = _seconds(lambda: target.copy_(source), device)
    return Roofline(
        gflops=gflops,
        tf32_gflops=tf32,
        half_gflops=half,
        int8_gops=int8,
        gb_per_s=2 * MEMORY / seconds / 1e9,
        source=f"{torch.cuda.get_device_name(device)}, measured",
    )


def _product(kind: torch.dtype, device: torch.device) -> float:
    a, b = (torch.rand(SIDE, SIDE, device=device).to(kind) for _ in range(2))
    return 2 * SIDE**3 / _seconds(lambda: a @ b, device) / 1e9


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    best = float("inf")
    for _ in range(TRIES):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        work()
        torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best
