"""A run's folder, as training left it or leaves it now."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from upsnet.charts import is_drawable
from upsnet.errors import InputError
from upsnet.files import read_json
from upsnet.history.curves import PQS, Rows
from upsnet.history.evaluation import NAME, Evaluation, read_evaluations
from upsnet.json_model import read_steps
from upsnet.strict_yaml import leaves, load_yaml

METRICS, CONFIG, PLAN = "metrics.jsonl", "config.yaml", "plan.json"


@dataclass
class Run:
    """What is there; `missing` says in sentences what is not."""

    name: str
    folder: Path
    settings: dict[str, object]  # config.yaml's keys, as schedule.lr, in its order
    rows: Rows  # of metrics.jsonl
    evaluations: list[Evaluation]
    length: int | None = None  # how many steps it was given; None: its folder does not say
    missing: list[str] = field(default_factory=list)

    @property
    def scored(self) -> Rows:
        """The lines of evaluations with a PQ."""
        return [row for row in self.rows if is_drawable(row.get(PQS["all"]))]

    @property
    def evaluates(self) -> bool:
        """Whether it ever will, as far as its settings say."""
        return self.settings.get("schedule.evaluate_every") != 0

    @property
    def step(self) -> int:
        """How far it has come."""
        return max((row["step"] for row in self.rows), default=0)

    @property
    def last(self) -> Evaluation | None:
        return self.evaluations[-1] if self.evaluations else None


def read_run(folder: Path) -> Run:
    """InputError for a folder without metrics.jsonl, and for a damaged file. What an older version did not write is
    missing, and a last line that is still being written is left out."""
    metrics, config, evaluations = folder / METRICS, folder / CONFIG, folder / NAME
    if not folder.is_dir():
        raise InputError(f"{folder}: no such run: {'a file' if folder.exists() else 'it is not here'}; give its folder")
    if not metrics.is_file():
        raise InputError(f"{folder}: no {METRICS} is there; `upsnet train` writes it into a run's folder")
    rows = [content for _, content in read_steps(metrics, drop_half=True)]
    run = Run(folder.absolute().name, folder, {}, rows, read_evaluations(evaluations), read_length(folder / PLAN))
    if config.is_file():
        run.settings = read_settings(config)
    else:
        run.missing.append(f"no {CONFIG}: its settings are not known")
    if not any("loss" in row for row in rows):
        run.missing.append("no losses yet")
    if not run.scored:
        run.missing.append("no evaluation with a PQ")
    elif not run.evaluations:
        run.missing.append(f"no {NAME}, as a run of an older version: no PQ by class")
    return run


def read_length(plan: Path) -> int | None:
    """The steps of a plan.json; config.yaml may give images in their place. InputError: it is no JSON."""
    content = read_json(plan) if plan.is_file() else None
    steps = content.get("iterations") if isinstance(content, dict) else None
    return steps if isinstance(steps, int) else None


def read_settings(config: Path) -> dict[str, object]:
    """A configuration's leaf keys, whatever version wrote it. InputError: it is none."""
    try:
        values = load_yaml(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{config}: not a readable YAML file ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise InputError(f"{config}: a configuration is a mapping of sections, found {type(values).__name__}")
    return leaves(values)
