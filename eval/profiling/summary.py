"""What a profile says: its nodes with their costs, and these added up by module and by operator."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from pydantic import BaseModel

from eval.profiling.costs import complete, count_bytes, count_macs, kind_of
from eval.profiling.graph import TITLES, Graph
from eval.profiling.roofline import Roofline
from eval.profiling.trace import Execution, Run, Tensor

OTHER = "other"  # the module of nodes of which none is known
NODES = 100  # that a report lists one by one


class Row(BaseModel):
    """Nodes together: a module, an operator, or all."""

    name: str
    nodes: int  # executions in one run
    ms: float  # each node's median over the runs, added
    best_ms: float  # each node's least, added: on a busy machine, nearer to what they take alone
    macs: int  # of one run
    moved_bytes: int
    roof_ms: float  # the least that the machine needs for them
    int8_macs: int = 0  # those of `macs` that multiply bytes
    half_macs: int = 0  # those that multiply fp16 or bf16


class Node(Row):
    """One node; in the body of a Scan all its executions together."""

    operator: str
    module: str
    inputs: list[str]  # of its first execution
    outputs: list[str]


class Variant(BaseModel):
    """One model with one choice of kernels."""

    kernels: str  # LIBRARY or BODIES of ONNX Runtime, else the runtime
    ms: float  # of a call without the profile, median
    profiled_ms: float  # of one with it
    outside_ms: float  # of the latter, in no node
    total: Row
    modules: list[Row]  # in the order of the network
    operators: list[Row]  # in descending time, as all that follow
    shares: dict[str, dict[str, float]]  # ms by module and operator
    nodes: list[Node]  # the most expensive ones


class Work(NamedTuple):
    """One execution: what it reads and makes, for which module."""

    module: str  # its title
    operator: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    turned: bool  # transA of Gemm


class Cost(NamedTuple):
    """What one execution has to do."""

    macs: int
    moved_bytes: int
    roof_ms: float
    int8_macs: int
    half_macs: int


def summarize(kernels: str, ms: float, runs: list[Run], graph: Graph | None, roofline: Roofline) -> Variant:
    """Of `runs` of one input. ms: of a call without the profile. graph: None where every execution says its module."""
    nodes = make_nodes(runs, graph, roofline)
    modules = _rows(nodes, lambda node: node.module)
    outside = [run.ms - sum(each.ms for each in run.executions) for run in runs]
    return Variant(
        kernels=kernels,
        ms=ms,
        profiled_ms=statistics.median(run.ms for run in runs),
        outside_ms=statistics.median(outside),
        total=add("all nodes", nodes),
        modules=[modules[name] for name in (*TITLES.values(), OTHER) if name in modules],
        operators=list(_rows(nodes, lambda node: node.operator).values()),
        shares={
            module: {row.name: row.ms for row in _rows(_of(module, nodes), lambda node: node.operator).values()}
            for module in modules
        },
        nodes=nodes[:NODES],
    )


def make_nodes(runs: list[Run], graph: Graph | None, roofline: Roofline) -> list[Node]:
    """Every node of the runs, in descending time. What is counted is counted in the first run."""
    times: dict[tuple[str, ...], list[float]] = defaultdict(lambda: [0.0] * len(runs))
    for index, run in enumerate(runs):
        for each in run.executions:
            times[each.path][index] += each.ms
    executions: dict[tuple[str, ...], list[Execution]] = defaultdict(list)
    for each in runs[0].executions:
        executions[each.path].append(each)
    nodes = [_node(some, times[path], graph, roofline) for path, some in executions.items()]
    return sorted(nodes, key=lambda node: -node.ms)


def work_of(execution: Execution, graph: Graph | None) -> Work:
    """With the inputs that the profile leaves out."""
    place = graph.find(execution.path) if graph else None
    if place is None:
        module = TITLES.get(execution.module, OTHER)
        return Work(module, execution.operator, execution.inputs, execution.outputs, False)
    turned = any(each.name == "transA" and each.i for each in place.node.attribute)
    inputs = complete(execution.inputs, place.node.input, place.weights)
    return Work(TITLES.get(place.module, OTHER), execution.operator, inputs, execution.outputs, turned)


def _node(executions: list[Execution], times: list[float], graph: Graph | None, roofline: Roofline) -> Node:
    works = [work_of(each, graph) for each in executions]
    costs = [_cost(each, roofline) for each in works]
    first = works[0]
    return Node(
        name="/".join(executions[0].path),
        nodes=len(executions),
        ms=statistics.median(times),
        best_ms=min(times),
        **{name: sum(getattr(cost, name) for cost in costs) for name in Cost._fields},
        operator=first.operator,
        module=first.module,
        inputs=[str(each) for each in first.inputs],
        outputs=[str(each) for each in first.outputs],
    )


def _cost(work: Work, roofline: Roofline) -> Cost:
    macs = count_macs(work.operator, work.inputs, work.outputs, work.turned)
    moved_bytes = count_bytes(work.operator, work.inputs, work.outputs)
    kind = kind_of(work.inputs)
    roof_ms = roofline.milliseconds(macs, moved_bytes, kind)
    return Cost(macs, moved_bytes, roof_ms, int8_macs=macs * (kind == "int8"), half_macs=macs * (kind == "fp16"))


def _of(module: str, nodes: list[Node]) -> list[Node]:
    return [node for node in nodes if node.module == module]


def _rows(nodes: list[Node], key: Callable[[Node], str]) -> dict[str, Row]:
    """In descending time."""
    members: dict[str, list[Node]] = defaultdict(list)
    for node in nodes:
        members[key(node)].append(node)
    rows = [add(name, some) for name, some in members.items()]
    return {row.name: row for row in sorted(rows, key=lambda row: -row.ms)}


def add(name: str, rows: Iterable[Row]) -> Row:
    """One row of several."""
    rows = list(rows)
    return Row(
        name=name,
        nodes=sum(row.nodes for row in rows),
        ms=sum(row.ms for row in rows),
        best_ms=sum(row.best_ms for row in rows),
        macs=sum(row.macs for row in rows),
        moved_bytes=sum(row.moved_bytes for row in rows),
        roof_ms=sum(row.roof_ms for row in rows),
        int8_macs=sum(row.int8_macs for row in rows),
        half_macs=sum(row.half_macs for row in rows),
    )
