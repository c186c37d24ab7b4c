"""The ablation's book-keeping, on a run that is there already."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from eval import ablation
from eval.ablation import Row
from upsnet.errors import InputError


def test_variants_and_table(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[str, tuple[str, ...]]] = []

    def copy(config: Path, folder: Path, device: str, overrides: tuple[str, ...]) -> None:
        trained.append((folder.name, overrides))
        shutil.copytree(tiny_run, folder, dirs_exist_ok=True)

    monkeypatch.setattr(ablation, "train", copy)
    rows = ablation.ablate(Path("demo.yaml"), tmp_path, "cpu", ("seed=5",))
    assert trained == [
        ("everything", ("seed=5",)),
        ("no_panoptic_loss", ("seed=5", "loss.panoptic=0")),
        ("no_deformable_convolutions", ("seed=5", "model.semantic_head.deformable=false")),
        ("everything", ("seed=5",)),  # pruning is left out of its predictions alone
    ]
    assert rows == [Row.model_validate(row) for row in json.loads((tmp_path / "ablation.json").read_text())]
    assert rows[0].pq and rows[0].model_copy(update={"name": rows[1].name}) == rows[1]
    console = Console(record=True, width=100)
    console.print(ablation.ablation_table(rows))
    line = next(line for line in console.export_text().splitlines() if "no panoptic loss" in line)
    assert line.split()[-1] == "0.0" and f"{100 * rows[0].pq:.1f}" in line


def test_a_training_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"everything: training ended with exit status 2"):
        ablation.train(tmp_path / "missing.yaml", tmp_path / "everything", "cpu", ())
