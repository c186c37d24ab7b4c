"""The runs of an ablation: trained in processes of their own, scored, and written down as they come."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from eval.ablation.parts import Prediction, Variant
from eval.ablation.report import SeedFigures
from eval.ablation.trainings import Trainings
from training.config import differing_keys, load_config
from training.data.open import open_training
from upsnet.datasets.parallel import usable_cores
from upsnet.datasets.progress import progress_bar
from upsnet.datasets.validation_set import open_dataset
from upsnet.errors import InputError
from upsnet.files import ending_on_sigterm
from upsnet.json_model import JsonModel, read_steps
from upsnet.metrics.evaluation import evaluate_records

FIGURES = "figures.json"  # in a run's folder
LAST = "last.safetensors"
NO_MATTER = ("data.workers", "data.check", "schedule.checkpoint_every", "schedule.log_every")  # to a run's figures


class Run(NamedTuple):
    """One training, and all variants that are scored on it."""

    folder: Path
    seed: int
    variants: list[Variant]

    def settings(self, overrides: tuple[str, ...]) -> tuple[str, ...]:
        """What is set in the configuration: for all runs, and for this one."""
        return (*overrides, *self.variants[0].overrides, f"seed={self.seed}")


class Scores(JsonModel):
    """FIGURES: prediction -> what the run's last weights reach with it."""

    cure = "; delete it"
    weights: tuple[int, int]  # size of the file, and when it was written
    scores: dict[Prediction, SeedFigures]


def runs_of(variants: Sequence[Variant], seeds: Sequence[int], out: Path) -> list[Run]:
    """One seed after the other: a table of all parts is there early, and its spread later."""
    runs: dict[Path, Run] = {}
    for seed in seeds:
        for variant in variants:
            folder = out / f"{variant.folder}_{seed}"
            runs.setdefault(folder, Run(folder, seed, [])).variants.append(variant)
    return list(runs.values())


def possible(variants: Sequence[Variant], config: Path, overrides: tuple[str, ...]) -> tuple[list[Variant], list[str]]:
    """The variants that the training data allow, and a line for each of the others. InputError where the data are
    wrong for all of them."""
    base = load_config(config, overrides)
    open_training(base.data, base.seed)
    kept, left_out = [], []
    for variant in variants:
        its = load_config(config, (*overrides, *variant.overrides))
        try:
            if its.data != base.data:
                open_training(its.data, its.seed)
            kept.append(variant)
        except InputError as error:
            left_out.append(f"{variant.name}: {error}")
    return kept, left_out


def finish(
    runs: Sequence[Run], config: Path, device: str, overrides: tuple[str, ...], jobs: int
) -> Iterator[tuple[Variant, SeedFigures]]:
    """Train and score what is not done yet, `jobs` runs at once; each variant's figures when they are there. What
    fails, and Ctrl-C, ends the trainings beside it, which save first."""
    trainings = Trainings(max(1, usable_cores() // jobs))
    with (
        ending_on_sigterm(),
        ThreadPoolExecutor(jobs) as pool,
        progress_bar(total=len(runs), title="ablation", unit="run") as bar,
    ):
        started = {pool.submit(figures_of, run, config, device, overrides, trainings): run for run in runs}
        try:
            for done in as_completed(started):
                scores, run = done.result(), started[done]
                bar.update()
                for variant in run.variants:
                    yield variant, scores[variant.prediction]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            trainings.stop()
            raise


def check_settings(runs: Sequence[Run], config: Path, overrides: tuple[str, ...]) -> None:
    """InputError where a folder has a run of other settings. `upsnet train` would go on with it where they are those
    of another length or another batch, which are no figures of this ablation."""
    for run in runs:
        if described := other_settings(run, config, overrides):
            raise InputError(f"{described}; give another folder with --out, or delete this one")


def other_settings(run: Run, config: Path, overrides: tuple[str, ...]) -> str:
    """In which settings the run in the folder is another one; empty where it is this one, or there is none."""
    if not (run.folder / LAST).exists():
        return ""
    try:
        its = load_config(run.folder / "config.yaml")
    except InputError as error:
        raise InputError(f"{error}; it is of a run that was finished or stopped: delete {run.folder}") from None
    changes = differing_keys(its, load_config(config, run.settings(overrides)))
    described = [f"{key} ({values})" for key, values in changes.items() if key not in NO_MATTER]
    if not described:
        return ""
    return f"{run.folder}: was trained with other settings (it against yours): {'; '.join(described)}"


def finished(
    variants: Sequence[Variant], out: Path, config: Path, overrides: tuple[str, ...]
) -> tuple[list[tuple[Variant, SeedFigures]], list[str]]:
    """What runs in `out` have reached before, of whatever seed; and a line for each of other settings."""
    seeds = {int(match[1]) for folder in out.glob("*_*") if (match := re.search(r"_(0|[1-9]\d*)$", folder.name))}
    found, left_out = [], []
    for run in runs_of(variants, sorted(seeds), out):
        if not (scores := known_scores(run)):
            continue
        if described := other_settings(run, config, overrides):
            left_out.append(described)
            continue
        found += [(each, scores[each.prediction]) for each in run.variants if each.prediction in scores]
    return found, left_out


def known_scores(run: Run) -> dict[Prediction, SeedFigures]:
    """Of a finished run whose weights are still the ones that were scored; else {}."""
    file, weights = run.folder / FIGURES, run.folder / LAST
    if not (file.exists() and weights.exists()):
        return {}
    known = Scores.load(file)
    return dict(known.scores) if known.weights == stamp(weights) else {}


def stamp(weights: Path) -> tuple[int, int]:
    """Size of the file, and when it was written."""
    found = weights.stat()
    return found.st_size, found.st_mtime_ns


def figures_of(
    run: Run, config: Path, device: str, overrides: tuple[str, ...], trainings: Trainings
) -> dict[Prediction, SeedFigures]:
    """Those that the run has; else trained and scored now."""
    scores = known_scores(run)
    if not scores:
        trainings.run(config, run.folder, device, run.settings(overrides))
    weights = stamp(run.folder / LAST)
    for prediction in {variant.prediction for variant in run.variants} - scores.keys():
        scores[prediction] = score(run, device, prediction)
        Scores(weights=weights, scores=scores).save(run.folder / FIGURES)
    return scores


def score(run: Run, device: str, prediction: Prediction) -> SeedFigures:
    """PQ of a run's last weights on its whole validation set, image by image."""
    from eval.ablation.predictors import open_predictor

    dataset = open_dataset(None, run=run.folder)
    predictor = open_predictor(run.folder / LAST, device, prediction)
    figures = evaluate_records(predictor, dataset, dataset.records).results(dataset.categories)
    steps = [line for _, line in read_steps(run.folder / "metrics.jsonl") if line.get("pq") is not None]
    curve = [(line["step"], line["pq"]) for line in steps]
    return SeedFigures(
        seed=run.seed, pq=figures["pq"], pq_things=figures["pq_things"], pq_stuff=figures["pq_stuff"], curve=curve
    )
