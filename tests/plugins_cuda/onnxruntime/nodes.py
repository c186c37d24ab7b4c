"""Nodes of the domain `upsnet` in ONNX Runtime, where our library of custom operators is registered; or is not."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto
from torch import Tensor

import plugins_cuda
from plugins_cuda.pytorch import FIXED
from upsnet.kernels.building import find_library

TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.uint8: TensorProto.UINT8,
    torch.int32: TensorProto.INT32,
    torch.int64: TensorProto.INT64,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.float64: TensorProto.DOUBLE,
}
PACKAGE = Path(plugins_cuda.__file__).parent
SCHEMAS = [import_module(f"plugins_cuda.{path.parent.name}.schema").SCHEMA for path in PACKAGE.glob("*/schema.py")]
ROOMS = {node: schema for schema in SCHEMAS for node in (schema.node, *(each.node for each in schema.tensors)) if node}
OUTPUTS: dict[str, list[torch.dtype | None]] = {  # None: the type of the first input
    name: [FIXED.get(output.type) for output in schema.outputs] for name, schema in sorted(ROOMS.items())
}
SANITIZED = bool(os.environ.get("UPSNET_SANITIZE"))


@functools.cache
def library_file(name: str = "onnxruntime") -> Path:
    """name: `onnxruntime`, the CPU fronts, or `onnxruntime_emulated`, the CUDA launchers as kernels of the CPU."""
    return find_library(name)


def session_options(threads: int = 1, library: Path | None = None) -> onnxruntime.SessionOptions:
    """library: None for ours."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.register_custom_ops_library(str(library or library_file()))
    return options


def open_session(model: onnx.ModelProto, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[torch.dtype, Sequence[int | str | None] | None]],
    outputs: Mapping[str, torch.dtype],
    bodies: bool = False,
) -> onnx.ModelProto:
    """inputs: types and shapes. bodies: the file holds what our nodes are made of."""
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        list(nodes),
        "nodes",
        [info(name, TYPES[dtype], shape) for name, (dtype, shape) in inputs.items()],
        [info(name, TYPES[dtype], None) for name, dtype in outputs.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("upsnet", 1)]
    functions = plugins_cuda.onnx_functions() if bodies else []
    return onnx.helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=10)


def one_node(
    name: str, tensors: Sequence[Tensor | None], attributes: Mapping[str, Any], bodies: bool = False
) -> onnx.ModelProto:
    """A model of one node, whose inputs have the tensors' types and ranks, and any size. None: an input left out."""
    first = next(each for each in tensors if each is not None)
    outputs = {f"out{i}": each or first.dtype for i, each in enumerate(OUTPUTS[name])}
    named = {f"in{i}": (each.dtype, [None] * each.ndim) for i, each in enumerate(tensors) if each is not None}
    wanted = [f"in{i}" if each is not None else "" for i, each in enumerate(tensors)]
    node = onnx.helper.make_node(name, wanted, list(outputs), domain="upsnet", **attributes)
    return model_of([node], named, outputs, bodies)


def feeds_of(tensors: Sequence[Tensor | None]) -> dict[str, np.ndarray]:
    return {f"in{i}": each.numpy() for i, each in enumerate(tensors) if each is not None}


Node = tuple[str, list[Tensor], dict[str, Any]]


def node_of(operator: Callable[..., Any], **values: Any) -> Node:
    """The node that PyTorch's exporter gets from an operator: its name, inputs and attributes."""
    found: list[Node] = []

    def note(name: str, inputs: Sequence[Tensor], attributes: dict[str, Any], **_: Any) -> Any:
        found.append((name.removeprefix("upsnet::"), list(inputs), attributes))
        return ()

    with plugins_in_export(note):
        operator(**values)
    return found[0]


class plugins_in_export:
    """Inside, operators emit their nodes, as while PyTorch exports; `emit` takes torch.onnx.ops' place."""

    def __init__(self, emit: Callable[..., Any]) -> None:
        self.emit = emit

    def __enter__(self) -> None:
        self.before = torch.onnx.is_in_onnx_export, torch.onnx.ops.symbolic_multi_out
        torch.onnx.is_in_onnx_export, torch.onnx.ops.symbolic_multi_out = lambda: True, self.emit

    def __exit__(self, *_: object) -> None:
        torch.onnx.is_in_onnx_export, torch.onnx.ops.symbolic_multi_out = self.before
