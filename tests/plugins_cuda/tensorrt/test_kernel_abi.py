"""Nobody forgets to raise the kernel ABI: kernel_abi.json has what its number stands for.

UPSNET_RECORD_KERNEL_ABI=1 records it anew.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from plugins_cuda import generate
from plugins_cuda.schema import Schema
from tests.plugins_cuda.conftest import schema_of
from tests.plugins_cuda.tensorrt.harness import FORMATS, TYPES, Harness, Plugin
from tests.plugins_cuda.tensorrt.test_plugins import IMAGES, NODES, types_of

pytestmark = pytest.mark.tensorrt

RECORD = Path(__file__).with_name("kernel_abi.json")
ROOMS = ["roi_align_fpn", "nms", "deform_conv", "panoptic_fusion"]
CASES = [(1, 32, torch.float32, False), (4, 336, torch.float16, True), (2, 50, torch.bfloat16, False)]


def inputs_of(name: str, batch: int, side: int) -> list[tuple[int, ...]]:
    """Shapes of a real network's size; side: of the largest map."""
    boxes = [(batch, 1000, 4), (batch, 1000)]
    convolution = [(batch, 256, side, side), (batch, 18, side, side), (256, 256, 3, 3), (256,)]
    pyramid = [(batch, 256, -(-side // step), -(-side // step)) for step in (1, 2, 4, 8)]
    things = [(batch, 100, 4), (batch, 100), (batch, 100), (batch, 100, 28, 28), (batch,), (batch, 2), (batch,)]
    return {
        "RoiAlignFpn": [*pyramid, boxes[0]],
        "PaddedNms": boxes,
        "PaddedBatchedNms": [*boxes, boxes[1]],
        "DeformConv2d": convolution,
        "ModulatedDeformConv2d": [*convolution, (batch, 9, side, side)],
        "PanopticFusion": [(batch, 64, side, side), *things],
    }[name]


def workspace_size(plugin: Plugin, name: str, batch: int, side: int, feature: torch.dtype, last: bool) -> int:
    """What getWorkspaceSize answers where these are the largest shapes. last: maps are channels-last."""
    inputs = inputs_of(name, batch, side)
    outputs = plugin.output_shapes(inputs)
    assert outputs is not None

    def tensor(index: int, shape: Sequence[int], dtype: torch.dtype) -> bytes:
        """A DynamicPluginTensorDesc."""
        layout = ("hwc" if dtype == torch.float32 else "hwc8") if last and index in IMAGES.get(name, []) else "linear"
        dims = struct.pack("=i4x8q", len(shape), *shape, *[0] * (8 - len(shape)))
        return dims + struct.pack("=iif4x", TYPES[dtype], FORMATS[layout], 1.0) + 3 * dims

    shapes = [*inputs, *outputs]
    all_tensors = zip(range(len(shapes)), shapes, types_of(name, feature), strict=True)
    packed = b"".join(tensor(*each) for each in all_tensors)
    return plugin._call("workspace_size", packed, len(inputs), len(outputs), result=ctypes.c_size_t)


def declared(schema: Schema) -> list[str]:
    """The tensors of an operator: name, shape, type, whether it may be channels-last."""
    rows = [row for part in (schema.tensors, schema.outputs) for tensor in part for row in generate.rows(tensor)]
    return [re.sub(r"Type::|[{}\"]", "", row).strip(" ,") for row in rows]


def described(harness: Harness, name: str, **more: str) -> Iterator[tuple[str, object]]:
    """What an engine with this plugin relies on. more: attributes."""
    plugin = harness.create(name, {**NODES[name], **more})
    fields = plugin.serialized()
    yield "attributes", [f"{f.name.decode()}: type {f.type}, {f.length}" for f in fields.fields[: fields.count]]
    for batch, side, feature, last in CASES:
        layout = "channels last" if last else "linear"
        size = workspace_size(plugin, name, batch, side, feature, last)
        yield f"workspace, {batch} x {side} x {side}, {str(feature).removeprefix('torch.')}, {layout}", size
    plugin.destroy()


def lines(part: object, path: str = "") -> set[str]:
    """What the record says, a line for each number or text."""
    if isinstance(part, dict):
        return {line for key, value in part.items() for line in lines(value, f"{path}{key}: ")}
    if isinstance(part, list):
        return {line for index, value in enumerate(part) for line in lines(value, f"{path}{index}: ")}
    return {f"{path}{part}"}


def test_the_kernel_abi_stands_for_what_was_recorded(harness: Harness) -> None:
    tensors = {room: declared(schema_of(room)) for room in ROOMS}
    plugins: dict[str, Any] = {name: dict(described(harness, name)) for name in sorted(harness.creators)}
    plugins["PanopticFusion, heuristic"] = dict(described(harness, "PanopticFusion", merge="heuristic"))
    now = {"kernel_abi": harness.kernel_abi, "tensors": tensors, "plugins": plugins}
    if os.environ.get("UPSNET_RECORD_KERNEL_ABI"):
        RECORD.write_text(json.dumps(now, indent=1) + "\n")
    recorded = json.loads(RECORD.read_text())
    if now == recorded:
        return
    cure = "record anew (UPSNET_RECORD_KERNEL_ABI=1)"
    if now["kernel_abi"] == recorded["kernel_abi"]:
        cure = (
            f"engines rely on this: raise UPSNET_KERNEL_ABI in plugins_cuda/common/kernel_abi.h, then {cure}; where "
            "workspaces shrank and nothing else changed, recording is enough"
        )
    changes = [
        *(f"- {line}" for line in lines(recorded) - lines(now)),
        *(f"+ {line}" for line in lines(now) - lines(recorded)),
    ]
    pytest.fail("\n".join([cure, *sorted(changes, key=lambda line: line[2:])]))
