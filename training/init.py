"""`upsnet init`: a checkpoint with random weights, to export and measure a configuration before it is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from training.checkpoint import Checkpoint, save, versions
from training.config import load_config
from training.model.upsnet import UPSNet
from upsnet.datasets.panoptic_json import read_categories


def main(
    config: Annotated[Path, typer.Option(help="YAML configuration, see training/configs/.")],
    categories: Annotated[Path, typer.Option(help="A COCO panoptic JSON, or the list of its categories.")],
    out: Annotated[Path, typer.Option(help="The checkpoint to write.")],
) -> None:
    """Random weights as a checkpoint: it exports and runs like a trained one, and recognises nothing."""
    settings = load_config(config)
    table = read_categories(categories)
    torch.manual_seed(settings.seed)
    model = UPSNet(settings.model, table.num_stuff, table.num_things)
    save(out, Checkpoint(settings, table, 0, None, model.state_dict(), {}, versions()))
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{out}: {millions:.1f} M parameters, {len(table)} classes, untrained")
