"""A model in ONNX Runtime with its profile on, and what the profile says by module, by operator and by node."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import NamedTuple, TypeVar

import onnx
import onnxruntime as ort
from pydantic import BaseModel
from tqdm import tqdm

from eval.profiling.costs import complete, count_bytes, count_macs, is_int8
from eval.profiling.graph import TITLES, Graph
from eval.profiling.roofline import Roofline
from eval.profiling.trace import Execution, Run, Tensor, read_trace
from upsnet.contract import INPUTS
from upsnet.geometry import NetworkBatch

WARM_UP = 2  # runs that are not counted
LIBRARY, BODIES = "library", "bodies"  # what runs the custom operators
OTHER = "other"  # the module of nodes of which none is known
NODES = 100  # that a report lists one by one
Key = TypeVar("Key", bound=Hashable)


class Row(BaseModel):
    """Nodes together: a module, an operator, one node, or all."""

    name: str
    nodes: int  # executions in one run
    ms: float  # median over the runs
    best_ms: float  # the least of them: on a busy machine, nearer to what they take alone
    macs: int  # of one run
    moved_bytes: int
    roof_ms: float  # the least that the machine needs for them


class Node(BaseModel):
    """One node; in the body of a Scan all its executions together."""

    costs: Row
    operator: str
    module: str
    inputs: list[str]  # of its first execution
    outputs: list[str]


class Variant(BaseModel):
    """One model with one choice of kernels."""

    kernels: str  # LIBRARY or BODIES
    ms: float  # of a call without the profile, median
    profiled_ms: float  # of one with it
    outside_ms: float  # of the latter, in no node
    total: Row
    modules: list[Row]
    operators: list[Row]
    shares: dict[str, dict[str, float]]  # ms by module and operator
    nodes: list[Node]  # the most expensive ones


class Cost(NamedTuple):
    """One execution, and what it had to do."""

    execution: Execution
    inputs: tuple[Tensor, ...]  # all of them
    module: str
    macs: int
    moved_bytes: int
    roof_ms: float


def profile(
    model: Path, batch: NetworkBatch, threads: int, library: Path | None, runs: int, roofline: Roofline
) -> Variant:
    """Times `runs` calls without the profile, then as many with it. library: of the custom operators; None: bodies."""
    kernels = BODIES if library is None else LIBRARY
    feed = dict(zip(INPUTS, batch, strict=True))
    session = _start(model, _options(threads, library))
    times = _call(session, feed, runs, f"{kernels}, timing")
    del session
    with tempfile.TemporaryDirectory() as folder:
        ran = Path(folder) / "ran.onnx"
        options = _options(threads, library)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.optimized_model_filepath = str(ran)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "ran.weights")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        session = _start(model, options)
        _call(session, feed, runs, f"{kernels}, profiling")
        trace = read_trace(Path(session.end_profiling()))[WARM_UP:]
        del session
        graphs = [onnx.load(str(path), load_external_data=False) for path in (ran, model)]
    return summarize(kernels, statistics.median(times), trace, Graph(*graphs), roofline)


def _options(threads: int, library: Path | None) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    if library is not None:
        options.register_custom_ops_library(str(library))
    return options


def _start(model: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def _call(session: ort.InferenceSession, feed: dict, runs: int, what: str) -> list[float]:
    times = []
    for _ in tqdm(range(WARM_UP + runs), desc=what, unit="run", disable=None):
        start = time.perf_counter()
        session.run(None, feed)
        times.append(1e3 * (time.perf_counter() - start))
    return times[WARM_UP:]


def summarize(kernels: str, ms: float, runs: list[Run], graph: Graph, roofline: Roofline) -> Variant:
    """Rows in descending time; modules in the order of the network."""
    costs = [[_cost(execution, graph, roofline) for execution in run.executions] for run in runs]
    modules = _group(costs, lambda cost: cost.module)
    first = {cost.execution.path: cost for cost in reversed(costs[0])}
    nodes = _group(costs, lambda cost: cost.execution.path)
    outside = [run.ms - sum(each.ms for each in run.executions) for run in runs]
    return Variant(
        kernels=kernels,
        ms=ms,
        profiled_ms=statistics.median(run.ms for run in runs),
        outside_ms=statistics.median(outside),
        total=_group(costs, lambda cost: "all")["all"],
        modules=[modules[name] for name in (*TITLES.values(), OTHER) if name in modules],
        operators=list(_group(costs, lambda cost: cost.execution.operator).values()),
        shares={
            name: {row.name: row.ms for row in _group(each, lambda cost: cost.execution.operator).values()}
            for name in modules
            for each in [[[cost for cost in run if cost.module == name] for run in costs]]
        },
        nodes=[_node(row, first[path]) for path, row in list(nodes.items())[:NODES]],
    )


def _cost(execution: Execution, graph: Graph, roofline: Roofline) -> Cost:
    place = graph.find(execution.path)
    inputs, turned = execution.inputs, False
    if place is not None:
        inputs = complete(inputs, place.node.input, place.weights)
        turned = any(each.name == "transA" and each.i for each in place.node.attribute)
    macs = count_macs(execution.operator, inputs, execution.outputs, turned)
    moved = count_bytes(execution.operator, inputs, execution.outputs)
    module = TITLES.get(place.module, OTHER) if place else OTHER
    return Cost(execution, inputs, module, macs, moved, roofline.milliseconds(macs, moved, is_int8(macs, inputs)))


def _group(runs: list[list[Cost]], key: Callable[[Cost], Key]) -> dict[Key, Row]:
    """A row for each key, in descending time. What is counted is counted in the first run."""
    times: dict[Key, list[float]] = defaultdict(lambda: [0.0] * len(runs))
    members: dict[Key, list[Cost]] = defaultdict(list)
    for index, costs in enumerate(runs):
        for cost in costs:
            times[key(cost)][index] += cost.execution.ms
    for cost in runs[0]:
        members[key(cost)].append(cost)
    rows = {
        each: Row(
            name=each if isinstance(each, str) else "/".join(each),  # type: ignore[arg-type]
            nodes=len(members[each]),
            ms=statistics.median(milliseconds),
            best_ms=min(milliseconds),
            macs=sum(cost.macs for cost in members[each]),
            moved_bytes=sum(cost.moved_bytes for cost in members[each]),
            roof_ms=sum(cost.roof_ms for cost in members[each]),
        )
        for each, milliseconds in times.items()
    }
    return dict(sorted(rows.items(), key=lambda item: -item[1].ms))


def _node(row: Row, cost: Cost) -> Node:
    inputs, outputs = (
        [f"{each.type} {list(each.shape)}" for each in some] for some in (cost.inputs, cost.execution.outputs)
    )
    return Node(costs=row, operator=cost.execution.operator, module=cost.module, inputs=inputs, outputs=outputs)
