"""The least time that a network takes on a named GPU, of what it has to compute and to move, by module and by type."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from pydantic import BaseModel
from rich.table import Table

from eval.profiling.costs import SAME_MEMORY, count_bytes, count_macs
from eval.profiling.graph import TITLES
from eval.profiling.roofline import Kind, Roofline
from eval.profiling.summary import OTHER, Work
from eval.profiling.trace import Tensor
from upsnet.tables import make_table

# What a builder computes together with the node that makes its first input: it moves no more than its other inputs.
FUSED = {
    *("Relu", "Clip", "Sigmoid", "Add", "Sub", "Mul", "Div", "Cast", "Neg", "Exp", "Where", "Transpose"),
    *("QuantizeLinear", "DequantizeLinear", "ReorderInput", "ReorderOutput", "BatchNormalization"),
    *("relu", "relu_", "add", "add_", "sub", "mul", "mul_", "div", "to", "clamp", "exp", "batch_norm", "silu", "silu_"),
}
FLOATS = ("float", "float16", "bfloat16", "double")
# What a table has columns of, with the bytes of a value.
TYPES: dict[Kind, int] = {"fp32": 4, "tf32": 4, "fp16": 2, "fp8": 1, "int8": 1}
HEADINGS: dict[Kind, str] = {"fp32": "fp32", "tf32": "tf32", "fp16": "fp16, bf16", "fp8": "fp8", "int8": "int8"}


class LeastRow(BaseModel):
    """One module, or all."""

    name: str
    macs: int
    values: int  # floating-point values that are read or written
    other_bytes: int  # of what has no floating point
    ms: dict[str, float]  # by type


class Least(BaseModel):
    """A network on a GPU: no program that does the work that was counted can be faster, and real ones are not as
    fast."""

    gpu: Roofline
    counted: str = ""  # what the MACs and values are those of
    rows: list[LeastRow]  # in the order of the network
    total: LeastRow


def least_on(gpu: Roofline, works: Iterable[Work], counted: str = "") -> Least:
    """Every node takes at least its products at the peak of the type, or its values through memory.

    All of the network counts as of that type; scores, boxes and masks are float32 in a real one.
    counted: what `works` are, for the table.
    """
    kinds = [kind for kind in TYPES if gpu.peak(kind)]
    macs, values, others = defaultdict[str, int](int), defaultdict[str, int](int), defaultdict[str, int](int)
    ms: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(kinds, 0.0))
    for work in works:
        products = count_macs(work.operator, work.inputs, work.outputs, work.turned)
        moved, rest = _moved(work)
        macs[work.module] += products
        values[work.module] += moved
        others[work.module] += rest
        for kind in kinds:
            ms[work.module][kind] += gpu.milliseconds(products, TYPES[kind] * moved + rest, kind)
    rows = [
        LeastRow(name=name, macs=macs[name], values=values[name], other_bytes=others[name], ms=dict(ms[name]))
        for name in (*TITLES.values(), OTHER)
        if name in ms
    ]
    total = LeastRow(
        name="all",
        macs=sum(macs.values()),
        values=sum(values.values()),
        other_bytes=sum(others.values()),
        ms={kind: sum(row.ms[kind] for row in rows) for kind in kinds},
    )
    return Least(gpu=gpu, counted=counted, rows=rows, total=total)


def _moved(work: Work) -> tuple[int, int]:
    """Floating-point values, and bytes of anything else, that cannot be avoided."""
    if not count_bytes(work.operator, work.inputs, work.outputs) or work.operator in SAME_MEMORY:
        return 0, 0
    tensors: list[Tensor] = [*work.inputs[1:]] if work.operator in FUSED else [*work.inputs, *work.outputs]
    moved = count_bytes(work.operator, work.inputs, work.outputs)
    whole = sum(each.bytes for each in (*work.inputs, *work.outputs))
    if work.operator not in FUSED and moved < whole:  # a part of what it could read
        share = moved / whole
        return (round(share * sum(each.items for each in tensors if each.type in FLOATS)), 0)
    floats = sum(each.items for each in tensors if each.type in FLOATS)
    return floats, sum(each.bytes for each in tensors if each.type not in FLOATS)


def least_table(least: Least, batch: int) -> Table:
    """Modules by type, and the images a second that come of it."""
    kinds = [kind for kind in TYPES if kind in least.total.ms]
    headings = ["", "MMAC", "M values", *(HEADINGS[kind] + "\nms" for kind in kinds)]
    table = make_table(f"The least time on {least.gpu.source}, by the type of all products and values", *headings)
    for row in (*least.rows, least.total):
        if row is least.total:
            table.add_section()
        cells = [f"{row.macs / 1e6:.1f}" if row.macs else "–", f"{row.values / 1e6:.2f}"]
        table.add_row(row.name, *cells, *(f"{row.ms[kind]:.4f}" for kind in kinds))
    rates = (1e3 * batch / max(least.total.ms[kind], 1e-9) for kind in kinds)
    table.add_row("images a second", "", "", *(f"{rate:.0f}" for rate in rates))
    counted = f"Counted: {least.counted}. " if least.counted else ""
    table.caption = (
        f"{counted}Every node at the peak of its type or through memory at its rate, pointwise nodes with the one "
        "before them. No program that does this work can be faster; starting kernels, small shapes and decisions in "
        "float32 come on top."
    )
    table.caption_justify = "left"
    return table
