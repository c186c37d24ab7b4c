"""What the server costs, as ratios measured in one run.

    python -m serving.benchmark --run runs/demo

The demo's weights run at the size of real photos: a copy of its ONNX file with another resize rule.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from serving.benchmark.measures import Ratio, of_network, of_transport
from serving.benchmark.models import make_jpeg, trivial, with_rule
from serving.repository import deploy
from serving.server import TritonServer
from upsnet.command_line.command import run as run_command
from upsnet.command_line.options import run_option
from upsnet.contract import manifest_path
from upsnet.geometry import ResizeRule
from upsnet.machine import machine_facts, package_versions
from upsnet.manifest import Manifest
from upsnet.report import Report
from upsnet.tables import make_table, print_tables

RULE = ResizeRule(short_side=512, max_side=672)  # a photo of 640 x 480 becomes 504 x 672, padded to 512 x 672
PHOTO_SIZE = 640, 480


class ServingBench(Report):
    """serving.json."""

    machine: dict[str, str | int]
    versions: dict[str, str]
    rounds: int
    ratios: list[Ratio]


@contextmanager
def served(model: Path) -> Iterator[str]:
    """The address of a server for this model alone."""
    with TritonServer(deploy(model, manifest_path(model), model.parent / "repository")) as server:
        yield server.url


def table_of(ratios: list[Ratio]) -> Table:
    table = make_table("What the server costs", "", "here", "server", "", "ratio", "goal")
    for each in ratios:
        best = min if each.unit == "ms" else max
        here, server = (f"{best(side.values()):.1f}" for side in (each.here, each.server))
        table.add_row(each.what, here, server, each.unit, f"{each.ratio:.2f}", each.goal)
    return table


def main(
    run: Annotated[Path, run_option("The run whose model is served.")] = Path("runs/demo"),
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each.")] = 15,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each turn at saturation.")] = 4.0,
    out: Annotated[Path | None, typer.Option(help="JSON to write (default: serving.json in the run).")] = None,
) -> None:
    """What the server adds to the same work in this process, as ratios."""
    source = run / "model.onnx"
    with tempfile.TemporaryDirectory(prefix="upsnet-") as folder:
        model = with_rule(source, RULE, Path(folder) / "large/model.onnx")
        with served(model) as url:
            ratios = asyncio.run(of_network(url, model, make_jpeg(*PHOTO_SIZE), rounds, seconds))
        empty = trivial(Manifest.load(manifest_path(source)), Path(folder) / "trivial/model.onnx")
        with served(empty) as url:
            ratios.append(asyncio.run(of_transport(url, max(1, rounds // 3), min(seconds, 2.0))))
    print_tables(table_of(ratios))
    out = out or run / "serving.json"
    ServingBench(machine=machine_facts(), versions=package_versions(), rounds=rounds, ratios=ratios).save(out)
    print(f"wrote {out}")


if __name__ == "__main__":
    run_command(main)
