"""RoIAlign of every box on the pyramid level that its size asks for."""

from plugins_cuda.pytorch import Call, operator
from plugins_cuda.roi_align_fpn import reference
from plugins_cuda.roi_align_fpn.backward import gradient
from plugins_cuda.roi_align_fpn.schema import SCHEMA

MAX_SAMPLES = 1024


def _check(call: Call) -> None:
    size, ratio = call.sizes["output_size"], call.sizes["sampling_ratio"]
    if size * max(ratio, 1) > MAX_SAMPLES:
        message = f"output_size * sampling_ratio must be at most {MAX_SAMPLES}, got {size} * {ratio}"
        raise ValueError(f"roi_align_fpn: {message}")


roi_align_fpn = operator(SCHEMA, reference.roi_align_fpn, gradient, _check)
