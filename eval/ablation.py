"""What each part of the network is worth: the same training without it, on the same seed.

    upsnet ablation --config training/configs/demo.yaml --out runs/ablation

Every variant is a run folder of its own under --out; one that is finished is not trained again.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.table import Table

from upsnet.datasets.validation_set import open_dataset
from upsnet.errors import InputError
from upsnet.figures import points
from upsnet.files import write_json
from upsnet.metrics.evaluation import evaluate_records
from upsnet.report import Report
from upsnet.tables import make_table, print_tables


class Variant(NamedTuple):
    """What is left out. `training`: overrides of the configuration; `mask_overlap`: another one at inference."""

    name: str
    training: tuple[str, ...] = ()
    mask_overlap: float | None = None


BASE = Variant("everything")
VARIANTS = (
    BASE,
    Variant("no panoptic loss", ("loss.panoptic=0",)),
    Variant("no deformable convolutions", ("model.semantic_head.deformable=false",)),
    Variant("no mask pruning", mask_overlap=1.0),
)


class Row(Report):
    """A variant's figures. ablation.json is a list of these, each with the version."""

    name: str
    pq: float | None
    pq_things: float | None
    pq_stuff: float | None


def ablate(config: Path, out: Path, device: str = "auto", overrides: tuple[str, ...] = ()) -> list[Row]:
    """Train and score every variant; writes out/ablation.json and returns its rows."""
    rows = []
    for variant in VARIANTS:
        trained = variant if variant.training else BASE
        folder = out / trained.name.replace(" ", "_")
        train(config, folder, device, (*overrides, *trained.training))
        figures = score(folder, device, variant.mask_overlap)
        rows.append(Row(name=variant.name, **figures))
        write_json(out / "ablation.json", [row.model_dump(mode="json") for row in rows])
    return rows


def train(config: Path, folder: Path, device: str, overrides: tuple[str, ...]) -> None:
    """`upsnet train` in a process of its own; a finished run ends at once."""
    command = [sys.executable, "-m", "training.train", "--config", str(config), "--out", str(folder)]
    command += ["--device", device, *(word for override in overrides for word in ("--set", override))]
    if code := subprocess.run(command, check=False).returncode:
        raise InputError(f"{folder}: training ended with exit status {code}; see above")


def score(folder: Path, device: str, mask_overlap: float | None) -> dict[str, float | None]:
    """PQ of a run's last weights on its whole validation set, image by image."""
    from training.checkpoint import load_model
    from training.device import open_device
    from training.predictor import UPSNetPredictor, make_manifest

    model, config, categories, _ = load_model(folder / "last.safetensors")
    if mask_overlap is not None:
        panoptic = model.config.panoptic.model_copy(update={"mask_overlap": mask_overlap})
        model.config = model.config.model_copy(update={"panoptic": panoptic})
    target = open_device(device)
    predictor = UPSNetPredictor(model.to(target), make_manifest(config, categories), target)
    dataset = open_dataset(None, run=folder)
    return evaluate_records(predictor, dataset, dataset.records, progress=True).results(dataset.categories)


def ablation_table(rows: list[Row]) -> Table:
    """PQ in points, and how much of it is lost."""
    table = make_table("Ablation, one seed", "", "PQ", "things", "stuff", "PQ lost")
    for row in rows:
        lost = (rows[0].pq or 0.0) - (row.pq or 0.0)
        table.add_row(row.name, *(points(value) for value in (row.pq, row.pq_things, row.pq_stuff, lost)))
    return table


def main(
    config: Annotated[Path, typer.Option(help="The configuration to take apart.")] = Path("training/configs/demo.yaml"),
    out: Annotated[Path, typer.Option(help="Folder for the runs and ablation.json.")] = Path("runs/ablation"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override for every variant; repeatable.")
    ] = None,
) -> None:
    """Train without the panoptic loss, without deformable convolutions, and predict without mask pruning."""
    rows = ablate(config, out, device, tuple(set_ or []))
    print_tables(ablation_table(rows))
    print(f"wrote {out / 'ablation.json'}")
