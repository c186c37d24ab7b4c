"""What runtimes say when they refuse an engine, which of the usual causes that is, and the cure."""

from __future__ import annotations

import re

from upsnet.engines.findings import Cause, Finding, failed

AGAIN = "build the engine again with `make engine`"
HERE = "build the engine on this machine with `make engine`"
# In the words of TensorRT 8 to 11, TensorRT-RTX 1.7, CUDA, and our own plugins. The first that is found is taken.
WORDS: tuple[tuple[str, Cause, str], ...] = (
    (r"kernel ABI", "kernel ABI", AGAIN),
    (r"driver version is insufficient|OLD_CUDA_DRIVER", "driver too old", "install a newer NVIDIA driver"),
    (r"[Vv]ersion tag does not match|not compatible with this version|VERSION_MISMATCH", "package version", AGAIN),
    (r"incompatible device|no kernel image is available|UNSUPPORTED_CC", "compute capability", HERE),
    (r"[Mm]agic ?[Tt]ag|MALFORMED_ENGINE|size and checksum", "altered", f"copy it again, or {AGAIN}"),
    (
        r"[Oo]ut ?[Oo]f ?[Mm]emory|OUT_OF_MEMORY|bad_alloc|INSUFFICIENT_GPU_MEMORY",
        "memory",
        "see in `nvidia-smi` who holds the GPU's memory, or build the engine with a smaller profile",
    ),
    (r"[Cc]ould not find plugin|[Cc]annot find plugin|[Pp]lugin not found|no plugin", "library missing", AGAIN),
    (r"CUDA_ERROR|cudaError|CUDA initialization", "driver", "see what `nvidia-smi` says"),
    (r"protobuf|INVALID_PROTOBUF|INVALID_GRAPH|damaged", "altered", "export it again with `make onnx`"),
)


def refusal(text: str, cure: str) -> Finding:
    """cure: the runtime's own, "" where it has none."""
    for words, cause, usual in WORDS:
        if re.search(words, text):
            return failed("loading", cause, text, cure or usual)
    return failed("loading", "refused", text, cure or AGAIN)
