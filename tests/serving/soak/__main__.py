"""Ten minutes of good and hostile requests against `upsnet serve`.

python -m tests.serving.soak --run runs/demo --seconds 600
"""

from __future__ import annotations

import asyncio
import tempfile
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from tests.serving.soak.footprint import Footprint
from tests.serving.soak.hostile import Target
from tests.serving.soak.service import Running, serving
from tests.serving.soak.soak import Service, SoakReport, good_questions, soak
from tests.shared import FOLDER
from upsnet.command_line.command import run as run_command
from upsnet.errors import InputError
from upsnet.runtimes.onnx_runtime import OnnxRuntimePredictor
from upsnet.sources import find_sources
from upsnet.tables import make_table, print_tables

PHOTOS = (Path("data/shapes/val"), FOLDER / "coco_sample/val2017")
MOST_GROWTH = 0.05


def soak_service(running: Running, model: Path, photos: list[Path], seconds: float, seed: int) -> SoakReport:
    questions = good_questions(photos, OnnxRuntimePredictor(model))
    good = tuple(question.message for kind in questions.values() for question in kind)
    places = tuple(running.address(name) for name in running.ports if name != "grpc")
    target = Target(running.address("grpc"), places, good)
    footprint = Footprint(running.process.pid, running.address("metrics"))
    return asyncio.run(soak(Service(target, footprint, model), questions, seconds, seed))


def main(
    run: Annotated[Path, typer.Option(help="The run to serve.")] = Path("runs/demo"),
    photos: Annotated[list[Path] | None, typer.Option(help="Folders of photos (default: those that are here).")] = None,
    most_photos: Annotated[int, typer.Option(min=3, help="Of each folder.")] = 4,
    seconds: Annotated[float, typer.Option(min=1)] = 600.0,
    seed: int = 0,
    out: Annotated[Path, typer.Option(help="JSON to write.")] = Path("soak.json"),
) -> None:
    """Status 1 where an answer was wrong, something was let in, the server restarted or its memory grew by 5 %."""
    if out.is_dir():
        raise InputError(f"{out}: it is a folder; --out names a file")
    folders = photos or [folder for folder in PHOTOS if folder.is_dir()]
    found = [source.path for folder in folders for source in islice(find_sources([folder], warn=False), most_photos)]
    with tempfile.TemporaryDirectory(prefix="upsnet-soak-") as folder:
        with serving(Path(folder) / "service.log", "--run", run) as running:
            report = soak_service(running, run / "model.onnx", found, seconds, seed)
        words = running.log.read_text()
    report.save(out)
    table = make_table(f"{report.seconds:.0f} s of good and hostile requests", "", "ended", left=2)
    for name, ended in [*report.good.items(), *report.hostile.items()]:
        table.add_row(name, ", ".join(f"{status} {times}" for status, times in sorted(ended.items())))
    print_tables(table)
    weights = ", ".join(f"{name} {size:.0f}" for name, size in report.memory[-1].mib.items())
    print(f"MiB: {weights}; after the warm-up the memory grew by {100 * report.growth:.1f} %")
    faults = report.faults + (["the memory grew"] if report.growth >= MOST_GROWTH else [])
    print("\n".join([*faults, *([words] if faults else []), f"wrote {out}"]))
    if faults:
        raise typer.Exit(1)


if __name__ == "__main__":
    run_command(main)
