"""ONNX Runtime's profile, read: what every node took in every run, each microsecond counted once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from upsnet.errors import InputError
from upsnet.files import read_json

CONTAINERS = ("Scan", "Loop", "If")  # nodes whose body is nodes again, each with an entry of its own
SUFFIX = "_kernel_time"
ITEM_BYTES = {
    "bool": 1, "int8": 1, "float8": 1, "uint8": 1, "float16": 2, "bfloat16": 2, "int16": 2, "uint16": 2,
    "float": 4, "int32": 4, "uint32": 4, "double": 8, "int64": 8, "uint64": 8,
}  # fmt: skip


class Tensor(NamedTuple):
    """What a node read or wrote."""

    type: str  # as ONNX Runtime writes it: float, int64, ...
    shape: tuple[int, ...]

    @property
    def items(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """0 for what is no tensor of numbers."""
        return ITEM_BYTES.get(self.type, 0) * self.items

    def __str__(self) -> str:
        return f"{self.type} {list(self.shape)}"


class Execution(NamedTuple):
    """One node, once. A node in the body of a Scan is executed once for each step."""

    path: tuple[str, ...]  # its name, after the names of the nodes whose bodies it is in
    operator: str
    ms: float  # without that of the nodes in its body
    inputs: tuple[Tensor, ...]  # without weights that ONNX Runtime brought into a form of its own
    outputs: tuple[Tensor, ...]
    module: str = ""  # where it is known without the graph


class Run(NamedTuple):
    """One call of the session."""

    ms: float
    executions: list[Execution]


def read_trace(path: Path) -> list[Run]:
    """Every run of a profile that `InferenceSession.end_profiling` has written, in order.

    InputError where the file is none, and where it is full (ONNX Runtime ends at a million entries).
    """
    events = read_json(path)
    try:
        events = sorted((_Event.of(each) for each in events if each), key=lambda event: (event.start, -event.length))
    except (TypeError, KeyError, ValueError, AttributeError):
        raise InputError(f"{path}: not a profile of ONNX Runtime") from None
    runs = [event for event in events if event.name == "model_run"]
    nodes = [event for event in events if event.operator]
    if not runs or (nodes and nodes[-1].start > runs[-1].end):
        raise InputError(f"{path}: not a profile of whole runs; profile fewer of them")
    return [
        Run(run.length / 1e3, list(_executions([node for node in nodes if run.start <= node.start <= run.end])))
        for run in runs
    ]


class _Event(NamedTuple):
    """An entry, in microseconds."""

    start: int
    length: int
    name: str
    operator: str  # "" where it is no node
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def end(self) -> int:
        return self.start + self.length

    @classmethod
    def of(cls, entry: dict[str, Any]) -> _Event:
        is_node = entry["cat"] == "Node" and entry["name"].endswith(SUFFIX)
        facts = entry["args"] if is_node else {}
        inputs, outputs = (_tensors(facts.get(f"{side}_type_shape", [])) for side in ("input", "output"))
        name = entry["name"].removesuffix(SUFFIX)
        return cls(entry["ts"], entry["dur"], name, facts.get("op_name", ""), inputs, outputs)


def _tensors(shapes: list[dict[str, list[int]]]) -> tuple[Tensor, ...]:
    return tuple(Tensor(kind, tuple(shape)) for tensor in shapes for kind, shape in tensor.items())


def _executions(nodes: list[_Event]) -> Iterator[Execution]:
    """In the order of their beginning. `nodes` has containers before what is in them."""
    containers: list[int] = []  # those that the node is in, by their place in `nodes`
    own = [node.length for node in nodes]
    paths = []
    for place, node in enumerate(nodes):
        while containers and node.end > nodes[containers[-1]].end:
            containers.pop()
        paths.append((*(nodes[each].name for each in containers), node.name))
        if containers:
            own[containers[-1]] -= node.length
        if node.operator in CONTAINERS:
            containers.append(place)
    for node, path, length in zip(nodes, paths, own, strict=True):
        yield Execution(path, node.operator, max(0, length) / 1e3, node.inputs, node.outputs)
