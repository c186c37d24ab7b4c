"""Running one operator: its ONNX body in ONNX Runtime, its compiled libraries."""

from __future__ import annotations

import ctypes
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, ParamSpec, TypeVar

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import plugins_cuda
from plugins_cuda import library
from plugins_cuda.pytorch import _empty_outputs, fill_params, params_type, read
from plugins_cuda.schema import Schema
from tests.plugins_cuda.fake_cuda import fake_cuda as fake_cuda
from tests.plugins_cuda.onnxruntime.front import custom_operators
from tests.plugins_cuda.toy import cmake_log as cmake_log
from tests.plugins_cuda.toy import fresh as fresh
from tests.plugins_cuda.toy import toy as toy

P = ParamSpec("P")
R = TypeVar("R")
RunNode = Callable[..., list[np.ndarray]]
TYPES = {torch.float32: 1, torch.uint8: 2, torch.int32: 6, torch.int64: 7, torch.float16: 10}  # onnx.TensorProto


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run_model(model: onnx.ModelProto, *inputs: Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return session.run(None, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})


def session_of(graph: onnx.GraphProto) -> onnxruntime.InferenceSession:
    """Runs the graph, whose nodes may be upsnet's, on one thread."""
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("upsnet", 1)]
    functions = plugins_cuda.onnx_functions()
    model = onnx.helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def export(network: nn.Module, inputs: tuple[Tensor, ...], **options: Any) -> onnx.ModelProto:
    """As `upsnet export` does it: the traced network, with the bodies of its nodes."""
    program = torch.onnx.export(network.eval(), inputs, dynamo=True, opset_version=20, verbose=False, **options)
    assert program is not None
    model = program.model_proto
    model.functions.extend(plugins_cuda.onnx_functions())
    onnx.checker.check_model(model, full_check=True)
    return model


class Calling(nn.Module):
    """A network that is one function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        return self.function(*inputs)


def assert_one_operator(room: str, function: Callable[..., Any], inputs: tuple[Any, ...]) -> None:
    """torch.compile and torch.export see one operator in a function, and give what the function gives."""
    network = Calling(function)
    with torch.no_grad():
        expected = network(*inputs)
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
        program = torch.export.export(network, inputs)
        for found in (compiled(*inputs), program.module()(*inputs)):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert [call for call in calls if "getitem" not in call] == [f"upsnet.{room}.default"]


@pytest.fixture(scope="session")
def run_node() -> RunNode:
    """run_node(name, {input: tensor}, [output types], **attributes): the body of upsnet::name, as arrays."""
    sessions: dict[tuple[object, ...], onnxruntime.InferenceSession] = {}

    def session(
        name: str, inputs: dict[str, Tensor], outputs: list[torch.dtype], attributes: dict[str, Any]
    ) -> onnxruntime.InferenceSession:
        def any_shape(label: str, dtype: torch.dtype, rank: int | None) -> onnx.ValueInfoProto:
            shape = None if rank is None else [None] * rank
            return onnx.helper.make_tensor_value_info(label, TYPES[dtype], shape)

        results = [f"out{index}" for index in range(len(outputs))]
        node = onnx.helper.make_node(
            name, list(inputs), results, domain="upsnet", plugin_version="1", plugin_namespace="", **attributes
        )
        graph = onnx.helper.make_graph(
            [node],
            "one_node",
            [any_shape(label, tensor.dtype, tensor.ndim) for label, tensor in inputs.items()],
            [any_shape(label, dtype, None) for label, dtype in zip(results, outputs, strict=True)],
        )
        return session_of(graph)

    def run(name: str, inputs: dict[str, Tensor], outputs: list[torch.dtype], **attributes: Any) -> list[np.ndarray]:
        types = [tensor.dtype for tensor in inputs.values()]
        key = (name, *types, *sorted((label, str(value)) for label, value in attributes.items()))
        if key not in sessions:
            sessions[key] = session(name, inputs, outputs, attributes)
        return sessions[key].run(None, {label: tensor.numpy() for label, tensor in inputs.items()})

    return run


@pytest.fixture(params=["reverse", "shuffle"])
def other_order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Operators run the emulated kernels, with the threads of a block in another order."""
    monkeypatch.setenv("UPSNET_EMULATOR_ORDER", request.param)
    with library.emulation():
        yield


def schema_of(room: str) -> Schema:
    return importlib.import_module(f"plugins_cuda.{room.replace('/', '.')}.schema").SCHEMA


def operator_of(room: str) -> Callable[..., Any]:
    """Its public function; of "roi_align_fpn/backward", the gradient's."""
    module = importlib.import_module(f"plugins_cuda.{room.replace('/', '.')}")
    return getattr(module, schema_of(room).name)


@functools.cache
def params_class(room: str) -> type[ctypes.Structure]:
    return params_type(schema_of(room))


def prepared(room: str, values: dict[str, Any]) -> tuple[ctypes.Structure, list[Tensor], object]:
    """The params of a call, its outputs, and what must live as long as they."""
    schema = schema_of(room)
    call = read(schema, values)
    outputs, params = _empty_outputs(schema, call), params_class(room)()
    return params, [each for output in outputs for each in output], fill_params(params, schema, call, outputs)


COMPILED = ["cpu", "emulated", pytest.param("cuda", marks=pytest.mark.gpu)]
IN_ONNXRUNTIME = ["onnxruntime", "onnxruntime_emulated"]  # as nodes
FORWARD = [*COMPILED, *IN_ONNXRUNTIME, "reference"]  # for operators without a gradient


@dataclass(frozen=True)
class Front:
    """Where an operator runs: `cpu`, `emulated` (the CUDA kernels' text on the CPU) or `cuda`, which are compiled;
    `onnxruntime`, the CPU front as a node of ONNX Runtime, and `onnxruntime_emulated`, the CUDA kernels' text as one;
    `reference`, the definition, as where there is no compiler; `training`, on the CPU, with a gradient wanted."""

    name: str

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.name == "cuda" else "cpu")

    def run(self, operator: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """What the operator gives, detached. In training a gradient has reached every input that trains."""
        if self.name != "training":
            return operator(*args, **kwargs)
        given = dict(inspect.signature(operator).bind(*args, **kwargs).arguments)
        leaves: list[Tensor] = []
        for tensor in schema_of(operator.__name__).tensors:
            value = given.get(tensor.name)
            if tensor.trains and value is not None:
                own = [each.detach().requires_grad_() for each in (value if tensor.each else [value])]
                given[tensor.name] = own if tensor.each else own[0]
                leaves += own
        result: Any = operator(**given)  # type: ignore[call-arg]
        gradients = torch.autograd.grad(result, leaves, torch.ones_like(result))
        for leaf, gradient in zip(leaves, gradients, strict=True):
            assert (gradient.shape, gradient.dtype) == (leaf.shape, leaf.dtype)
        return result.detach()


def front_fixture(names: list[Any]) -> Any:
    """A fixture `front`: each of these ways to run an operator. Inside the test, CPU tensors go through it."""

    @pytest.fixture(name="front", params=names)
    def serve(request: pytest.FixtureRequest) -> Iterator[Front]:
        chosen = Front(request.param)
        if chosen.name == "cuda" and not torch.cuda.is_available():
            pytest.skip("no NVIDIA GPU")
        ways = {"emulated": library.emulation, "reference": library.definitions}
        ways |= {name: partial(custom_operators, name) for name in IN_ONNXRUNTIME}
        entered = ways.get(chosen.name, nullcontext)
        with entered():
            served = library.compiled(chosen.device)
            if chosen.name in ("cpu", "emulated", "cuda"):
                architecture = library.gpu_architecture(chosen.device) if chosen.name == "cuda" else ""
                assert served is not None and served.path == library.load(chosen.name, architecture).path
            yield chosen

    return serve


front = front_fixture([*FORWARD, "training"])
