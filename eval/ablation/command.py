"""What each part of a configuration is worth.

    upsnet ablation --config training/configs/shapes_hard.yaml --seeds 3 --jobs 2

Every training is a run folder of its own under --out, and one that is finished is not trained again; so the command may
be stopped and started. ablation.json and ablation.png are written anew after each of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eval.ablation.chart import draw
from eval.ablation.parts import variants_of
from eval.ablation.report import Ablation, Row, ablation_table
from eval.ablation.run import check_settings, finish, finished, possible, runs_of
from training.config import load_config
from upsnet.datasets.folder import PanopticFolder
from upsnet.errors import InputError
from upsnet.files import existing_folder, write_bytes
from upsnet.tables import print_tables

DEFAULT = Path("training/configs/shapes_hard.yaml")


def ablate(
    config: Path,
    out: Path,
    seeds: int = 3,
    jobs: int = 1,
    device: str = "auto",
    overrides: tuple[str, ...] = (),
    parts: tuple[str, ...] = (),
) -> Ablation:
    """Train and score every variant on `seeds` seeds; writes out/ablation.json and out/ablation.png as figures come,
    with those of other parts and seeds that runs in `out` have reached before.

    InputError, before any is trained, where one of these runs is in `out` with other settings.
    """
    if jobs < 1 or seeds < 1:
        raise InputError("--jobs and --seeds: at least 1")
    existing_folder(out)
    variants, left_out = variants_of(config, overrides, parts)
    variants, refused = possible(variants, config, overrides)
    runs, whole = runs_of(variants, range(seeds), out), variants_of(config, overrides)[0]
    check_settings(runs, config, overrides)
    before, others = finished(whole, out, config, overrides)
    left_out += refused + others
    for line in left_out:
        print(f"left out: {line}")
    images = len(PanopticFolder(load_config(config, overrides).data.val).records)
    found = Ablation(
        config=config.name,
        overrides=list(overrides),
        images=images,
        left_out=left_out,
        rows=[
            Row(name=v.name, added=v.added, overrides=list(v.overrides), seeds=[])
            for v in whole
            if v in variants or v in (variant for variant, _ in before)
        ],
    )
    for variant, figures in before:
        found = found.with_figures(variant.name, figures)
    for variant, figures in finish(runs, config, device, overrides, jobs):
        found = found.with_figures(variant.name, figures)
        found.save(out / "ablation.json")
        write_bytes(out / "ablation.png", draw(found))
    return found


def main(
    config: Annotated[Path, typer.Option(help="The configuration to take apart.")] = DEFAULT,
    out: Annotated[Path, typer.Option(help="Folder for the runs, ablation.json and ablation.png.")] = Path(
        "runs/ablation"
    ),
    seeds: Annotated[int, typer.Option(help="How many seeds, from 0 on.")] = 3,
    jobs: Annotated[int, typer.Option(help="Trainings at once; they share the cores.")] = 1,
    part: Annotated[list[str] | None, typer.Option(help="Only this part, as the table names it; repeatable.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override for every variant; repeatable.")
    ] = None,
) -> None:
    """Train a configuration without each of its parts, and with each that it could have, on several seeds."""
    found = ablate(config, out, seeds, jobs, device, tuple(set_ or ()), tuple(part or ()))
    print_tables(ablation_table(found))
    print(f"wrote {out / 'ablation.json'} and {out / 'ablation.png'}")
