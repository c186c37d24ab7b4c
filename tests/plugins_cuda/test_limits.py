"""What the launchers and the CPU fronts refuse when they are called past the checks of PyTorch's binding; and tensors
that begin anywhere in memory."""

from __future__ import annotations

import ctypes
import math
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from plugins_cuda import library
from tests.plugins_cuda.conftest import COMPILED, IN_ONNXRUNTIME, Front, front_fixture, operator_of, prepared, schema_of
from tests.plugins_cuda.inputs import LAYOUTS, room_inputs

ROOMS = ["nms", "roi_align_fpn", "roi_align_fpn/backward", "deform_conv", "deform_conv/columns", "panoptic_fusion"]
INVALID, MISALIGNED = 1, 716  # cudaError_t
front = front_fixture([*COMPILED, *IN_ONNXRUNTIME])


def start(name: str, room: str, params: ctypes.Structure) -> int:
    """The status of one call with all the memory that it may want."""
    served = library.load(name)
    operator = served._operator(schema_of(room).name, params)
    if operator.workspace_size is None:
        return operator.start(ctypes.byref(params), 1)
    workspace = torch.empty(1 << 24, dtype=torch.uint8)
    return operator.start(ctypes.byref(params), workspace.data_ptr(), workspace.numel(), None)


@pytest.mark.parametrize("name", ["cpu", "emulated"])
@pytest.mark.parametrize(
    ("room", "wrong"),
    [
        *(("nms", {"iou_threshold": value}) for value in (-0.1, -1.0, 1.5, math.nan, math.inf)),
        *(("nms", {name: value}) for name, value in (("score_threshold", math.nan), ("num_boxes", -1), ("batch", -1))),
        *(("nms", {name: value}) for name in ("max_output", "num_boxes") for value in (-1, 2**31 - 1)),
        *(("roi_align_fpn", each) for each in ({"output_size": 0}, {"sampling_ratio": -1})),
        ("roi_align_fpn", {"sampling_ratio": 0, "output_size": 2000}),
        ("roi_align_fpn", {"sampling_ratio": 0, "widths": [8193, 1, 1, 1]}),
        *(("roi_align_fpn", {name: 2000}) for name in ("output_size", "sampling_ratio")),
        *(("roi_align_fpn", {name: -1}) for name in ("batch", "channels", "rois_per_image")),
        ("roi_align_fpn", {"batch": 2**16, "rois_per_image": 2**15}),
        ("roi_align_fpn", {"heights": [2**16] * 4, "widths": [2**15] * 4}),
        ("roi_align_fpn", {"heights": [-1] * 4}),
        ("roi_align_fpn/backward", {"sampling_ratio": 0, "heights": [8193, 1, 1, 1]}),
        *(("roi_align_fpn/backward", {name: -1}) for name in ("channels", "output_size", "rois_per_image")),
        *(("deform_conv", {name: 0}) for name in ("channels", "group", "offset_group", "kernel_h", "kernel_w")),
        *(("deform_conv", {name: 3}) for name in ("group", "offset_group")),
        *(("deform_conv", {name: -1}) for name in ("batch", "channels", "height", "width", "group")),
        ("deform_conv", {"height": 2**16, "width": 2**15}),
        ("deform_conv", {"kernel_h": 2**16, "kernel_w": 2**16}),
        *(("deform_conv", {name: [0, 1]}) for name in ("stride", "dilation")),
        *(("deform_conv", {name: [1, 2**31 - 1]}) for name in ("stride", "dilation")),
        ("deform_conv", {"padding": [-1, 0]}),
        *(("panoptic_fusion", {name: -1}) for name in ("batch", "num_things", "height", "width", "detections")),
        ("panoptic_fusion", {"num_stuff": 0}),
        ("panoptic_fusion", {"num_stuff": 2**31 - 1}),
        ("panoptic_fusion", {"detections": 253}),
        *(("panoptic_fusion", {"mask_size": value}) for value in (0, 513)),
        *(("panoptic_fusion", {name: value}) for name, value in (("batch", 2**16), ("height", 2**17))),
        ("panoptic_fusion", {"height": 2**31 - 1, "width": 2**31 - 1}),
        ("panoptic_fusion", {"height": 0, "width": 2**30}),
        ("panoptic_fusion", {"batch": 29128, "height": 2**16, "width": 1}),
    ],
    ids=str,
)
def test_numbers_and_sizes_that_no_kernel_can_hold(name: str, room: str, wrong: dict[str, Any]) -> None:
    params, outputs, _held = prepared(room, room_inputs(room))
    for output in outputs:
        output.zero_()
    for member, value in wrong.items():
        if isinstance(value, list):
            getattr(params, member)[:] = value
        else:
            setattr(params, member, value)
    assert start(name, room, params) == INVALID
    assert not any(output.any() for output in outputs)


@pytest.mark.parametrize("room", ROOMS)
def test_emulated_launch_refuses_pointers_between_elements(room: str) -> None:
    schema = schema_of(room)
    sizes = {"void": 2, "float": 4, "int32_t": 4, "int64_t": 8, "uint8_t": 2}
    for tensor in [*schema.tensors, *schema.outputs]:
        params, _outputs, _held = prepared(room, room_inputs(room, dtype=torch.float16))
        assert start("emulated", room, params) == 0
        value = getattr(params, tensor.name)
        half = sizes[tensor.element] // 2
        if tensor.each:
            value[3] += half
        elif value is not None:
            setattr(params, tensor.name, value + half)
        assert start("emulated", room, params) == (0 if value is None else MISALIGNED), tensor.name


def test_emulated_launch_refuses_outputs_that_it_writes_several_elements_of_at_once() -> None:
    for room, output, step in (("panoptic_fusion", "panoptic", 8), ("roi_align_fpn", "output", 2)):
        params, _outputs, _held = prepared(room, room_inputs(room, dtype=torch.float16))
        setattr(params, output, getattr(params, output) + step)
        assert start("emulated", room, params) == MISALIGNED


def moved(value: Any, elements: int, odd: int, device: torch.device) -> Any:
    """Tensors on the device, so many elements and bytes behind where PyTorch would have them."""
    if isinstance(value, list):
        return [moved(each, elements, odd, device) for each in value]
    if not isinstance(value, Tensor):
        return value
    if odd:  # of somebody else's buffer, on a CPU
        buffer = bytearray(value.nbytes + odd)
        memory = torch.frombuffer(buffer, dtype=value.dtype, count=value.numel(), offset=odd)
    else:
        memory = torch.empty(elements + value.numel(), dtype=value.dtype, device=device)[elements:]
    return memory.as_strided(value.shape, value.stride(), memory.storage_offset()).copy_(value)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("room", ROOMS)
def test_tensors_begin_anywhere(front: Front, room: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    """Every tensor one element, or one byte, behind the place that vectors of elements want."""
    if front.name in IN_ONNXRUNTIME and not schema_of(room).node:
        pytest.skip("of training alone")
    values = room_inputs(room, 1, dtype, layout)
    operator = operator_of(room)

    def run(elements: int, odd: int) -> Any:
        return operator(**{name: moved(value, elements, odd, front.device) for name, value in values.items()})

    for elements, odd in ((1, 0), (3, 0), *([(0, 1)] if front.device.type == "cpu" else [])):
        torch.testing.assert_close(run(elements, odd), run(0, 0), rtol=1e-3, atol=1e-3)


def test_emulated_deform_conv_on_a_gpu_with_64_kb_of_shared_memory() -> None:
    """As a T4 has it: fewer taps at once, and nothing else."""
    code = """
import torch
import plugins_cuda
from plugins_cuda import library
from tests.plugins_cuda.inputs import DeformCase
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    for outputs in (64, 130):
        tensors = DeformCase(channels=33, out_channels=outputs, size=(3, 4)).tensors(dtype)
        with library.emulation():
            found = plugins_cuda.deform_conv(**tensors)
        wanted = plugins_cuda.deform_conv(**tensors)
        torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-4 if dtype == torch.float32 else 5e-2)
"""
    on_a_small_gpu(code)


def test_emulated_roi_align_on_a_gpu_with_64_kb_of_shared_memory() -> None:
    """The taps of a map that is long leave little room for a mask head's bins."""
    on_a_small_gpu("""
import torch
import plugins_cuda
from plugins_cuda import library
rois = torch.tensor([[[0.0, 0, 300, 9000], [8, 8, 20, 8000]]])
for dtype in (torch.float32, torch.float16):
    for layout in (torch.contiguous_format, torch.channels_last):
        maps = [torch.randn(1, 256, 2400 // side, 8).to(dtype) for side in (1, 2, 4, 8)]
        maps = [each.contiguous(memory_format=layout) for each in maps]
        with library.emulation():
            found = plugins_cuda.roi_align_fpn(maps, rois, 14, 0)
        wanted = plugins_cuda.roi_align_fpn(maps, rois, 14, 0)
        torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-3)
""")


def on_a_small_gpu(code: str) -> None:
    """What a kernel may have is asked once in a process."""
    environment = os.environ | {"UPSNET_EMULATOR_SHARED": str(64 * 1024)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
