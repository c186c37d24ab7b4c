"""A TensorRT plan: every layer's time by TensorRT's own profiler, and what it computes by the ONNX file behind it.

The builder fuses nodes of the file into layers; a plan that keeps its layers' names (`keep_layers`) says of each which
nodes it is. Their shapes are those of one run of the file in ONNX Runtime, without its optimisation. A layer's time is
that of its largest node; other products in it have their MACs, and no time of their own.
"""

from __future__ import annotations

import logging
import re
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import onnxruntime as ort
from tqdm import tqdm

from eval.plans import Plan
from eval.profiling.costs import count_bytes, count_macs
from eval.profiling.graph import node_modules
from eval.profiling.measure import WARM_UP, Recording, trace_of
from eval.profiling.trace import Execution, Run, Tensor
from upsnet.geometry import NetworkBatch
from upsnet.kernels.choice import find_kernels
from upsnet.runtimes.onnx_runtime import LOAD_ERRORS, first_reason, session_options

logger = logging.getLogger("upsnet")
NODES = re.compile(r"\[ONNX Layer: ([^\]]+)\]")  # in what the inspector calls Metadata
MARKS = {
    "int8": r"int8", "float8": r"fp8|float8", "bfloat16": r"bf16|bfloat16", "float16": r"fp16|half",
    "float": r"fp32|\bfloat\b", "int64": r"int64", "int32": r"int32", "bool": r"bool", "uint8": r"uint8",
}  # fmt: skip
FLOATS = ("float", "float16", "bfloat16", "float8")


class Layer(NamedTuple):
    """One layer of a plan."""

    name: str
    kind: str  # as TensorRT calls it
    nodes: list[str]  # of the ONNX file
    type: str  # of its first input, as ONNX Runtime would call it; "": not said


def record_plan(plan: Path, batch: NetworkBatch, source: Path | None, runs: int, **opening: Any) -> Recording:
    """Times `runs` calls without the profile, then as many with it. source: the ONNX file. opening: for `Plan`."""
    opened = Plan(plan, **opening)
    try:
        times = _call(opened, batch, runs, "timing")
        layers = {layer.name: layer for layer in map(describe, opened.layers())}
    finally:
        opened.close()
    known = {} if source is None else {each.path[0]: each for each in executions_of(source, batch)}
    told: list[tuple[str, float]] = []
    profiled = []
    opened = Plan(plan, **opening, report=lambda name, ms: told.append((name, ms)))
    try:
        for _ in tqdm(range(WARM_UP + runs), desc="profiling", unit="run", disable=None):
            told.clear()
            start = time.perf_counter()
            opened.run(batch)
            length = 1e3 * (time.perf_counter() - start)
            profiled.append(Run(length, [each for name, ms in told for each in _executions(name, ms, layers, known)]))
    finally:
        opened.close()
    title = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}[opening["package"]]
    return Recording(title, statistics.median(times), profiled[WARM_UP:], None)


def _call(plan: Plan, batch: NetworkBatch, runs: int, what: str) -> list[float]:
    times = []
    for _ in tqdm(range(WARM_UP + runs), desc=what, unit="run", disable=None):
        start = time.perf_counter()
        plan.run(batch)
        times.append(1e3 * (time.perf_counter() - start))
    return times[WARM_UP:]


def describe(entry: dict[str, Any]) -> Layer:
    """What the inspector says of a layer. Without details its name is all, which joins those of its nodes by " + "."""
    name = str(entry["Name"])
    nodes = NODES.findall(str(entry.get("Metadata", "")))
    inputs = entry.get("Inputs") or [{}]
    form = str(inputs[0].get("Format/Datatype", "")) if isinstance(inputs[0], dict) else ""
    kind = next((kind for kind, mark in MARKS.items() if re.search(mark, form, re.IGNORECASE)), "")
    return Layer(name, str(entry.get("LayerType", "")), nodes or [part.strip() for part in name.split(" + ")], kind)


def executions_of(source: Path, batch: NetworkBatch) -> list[Execution]:
    """Every node of the file with its module, and with its shapes from one run on the CPU; a custom operator that runs
    from its function's body has none. A warning where ONNX Runtime cannot run the file: then none has."""
    kernels = find_kernels("auto")
    kernels.warn()
    options = session_options(library=kernels.library)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")  # the trace leaves out weights that are packed
    try:
        ran = {each.path[0]: each for each in trace_of(source, options, batch).executions}
    except LOAD_ERRORS as error:  # types that a CPU does not have, as bfloat16
        logger.warning("%s: no shapes and no MACs: ONNX Runtime cannot run it here (%s)", source, first_reason(error))
        ran = {}
    graph = onnx.load(str(source), load_external_data=False).graph
    nodes = zip(graph.node, node_modules(graph, {}), strict=True)
    return [
        ran.get(node.name, Execution((node.name,), node.op_type, 0.0, (), ()))._replace(module=module)
        for node, module in nodes
    ]


def _executions(name: str, ms: float, layers: dict[str, Layer], known: dict[str, Execution]) -> Iterator[Execution]:
    """A layer in one call: its largest node with the time, and other products without."""
    layer = layers.get(name, Layer(name, "", [], ""))
    nodes = [known[each] for each in layer.nodes if each in known]
    if not nodes:
        kind = "Reformat" if "reformat" in f"{layer.kind} {name}".lower() else layer.kind or "layer"
        yield Execution((name,), kind, ms, (), ())
        return
    main = max(nodes, key=lambda node: (_macs(node), count_bytes(node.operator, node.inputs, node.outputs)))
    for node in nodes:
        if node is main or _macs(node):
            inputs, outputs = (_retyped(each, layer.type) for each in (node.inputs, node.outputs))
            path = (name, node.path[0])
            yield Execution(path, node.operator, ms * (node is main), inputs, outputs, node.module)


def _macs(node: Execution) -> int:
    return count_macs(node.operator, node.inputs, node.outputs)


def _retyped(tensors: tuple[Tensor, ...], kind: str) -> tuple[Tensor, ...]:
    """With the floating-point type that the plan computes in, or its eight bits."""
    if kind not in (*FLOATS, "int8"):
        return tensors
    return tuple(each._replace(type=kind) if each.type in FLOATS else each for each in tensors)
