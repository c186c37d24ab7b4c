"""The custom operators as a front of the operators' suite: PyTorch's operators, run as nodes of ONNX Runtime."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor

from plugins_cuda import library, pytorch
from plugins_cuda.schema import Schema
from tests.plugins_cuda.onnxruntime.nodes import OUTPUTS, TYPES, library_file, one_node, open_session, session_options

THREADS = 2


@dataclass(frozen=True)
class CustomOperators:
    """In the place of a library.Library. name: of nodes.library_file."""

    name: str

    @property
    def path(self) -> Path:
        return library_file(self.name)

    def run(self, room: str, params: Any, device: torch.device) -> None:
        """The node that the exporter would emit, on the memory of PyTorch's tensors."""
        schema, call, outputs = params.called_with

        def emit(name: str, inputs: Sequence[Tensor], attributes: Mapping[str, Any], **declared: Any) -> list[Tensor]:
            shapes, dtypes = declared["shapes"], declared["dtypes"]
            results = [torch.empty(shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
            run_on(self.path, name.removeprefix("upsnet::"), inputs, attributes, results)
            return results

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.onnx.ops, "symbolic_multi_out", emit)
            results = pytorch._node(schema, call)
        for output, result in zip(outputs, [results] if isinstance(results, Tensor) else results, strict=True):
            output.copy_(result)


def run_on(
    library: Path, name: str, inputs: Sequence[Tensor], attributes: Mapping[str, Any], results: Sequence[Tensor]
) -> None:
    """One node; writes to `results`."""
    inputs = [each.contiguous() for each in inputs]
    inputs = [each if each.data_ptr() % each.element_size() == 0 else each.clone() for each in inputs]
    types = tuple(each.dtype for each in inputs)
    ranks = tuple(each.ndim for each in inputs)
    session = session_of(library, name, types, ranks, tuple(map(hashable, attributes.items())))
    binding = session.io_binding()
    nothing = torch.empty(16)  # empty tensors of PyTorch are nowhere
    for kind, tensors, bind in (("in", inputs, binding.bind_input), ("out", results, binding.bind_output)):
        for index, each in enumerate(tensors):
            address = each.data_ptr() or nothing.data_ptr()
            bind(f"{kind}{index}", "cpu", 0, TYPES[each.dtype], tuple(each.shape), address)
    session.run_with_iobinding(binding)


def hashable(attribute: tuple[str, Any]) -> tuple[str, Any]:
    name, value = attribute
    return name, tuple(value) if isinstance(value, list) else value


@lru_cache(maxsize=64)
def session_of(
    library: Path,
    name: str,
    types: tuple[torch.dtype, ...],
    ranks: tuple[int, ...],
    attributes: tuple[tuple[str, Any], ...],
) -> onnxruntime.InferenceSession:
    assert name in OUTPUTS
    shaped = [torch.empty([0] * rank, dtype=dtype) for rank, dtype in zip(ranks, types, strict=True)]
    return open_session(one_node(name, shaped, dict(attributes)), session_options(THREADS, library))


@contextmanager
def custom_operators(name: str = "onnxruntime") -> Iterator[None]:
    """Inside, operators on CPU tensors run in ONNX Runtime, by the library of nodes.library_file(name)."""

    def fill_params(
        params: ctypes.Structure, schema: Schema, call: pytorch.Call, outputs: Sequence[list[Tensor]]
    ) -> object:
        params.called_with = schema, call, [each for output in outputs for each in output]  # type: ignore[attr-defined]
        return pytorch_fill_params(params, schema, call, outputs)

    pytorch_fill_params, served = pytorch.fill_params, CustomOperators(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytorch, "fill_params", fill_params)
        for module in (pytorch, library):
            patch.setattr(module, "compiled", lambda device: served)
        yield
