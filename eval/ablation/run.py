"""The runs of an ablation: trained in processes of their own, scored, and written down as they come."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from eval.ablation.parts import Prediction, Variant
from eval.ablation.report import SeedFigures
from upsnet.datasets.progress import progress_bar
from upsnet.datasets.validation_set import open_dataset
from upsnet.errors import InputError
from upsnet.json_model import JsonModel, read_steps
from upsnet.metrics.evaluation import evaluate_records

FIGURES = "figures.json"  # in a run's folder
LAST = "last.safetensors"


class Run(NamedTuple):
    """One training, and all variants that are scored on it."""

    folder: Path
    seed: int
    variants: list[Variant]


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


def finish(
    runs: Sequence[Run], config: Path, device: str, overrides: tuple[str, ...], jobs: int
) -> Iterator[tuple[Variant, SeedFigures]]:
    """Train and score what is not done yet, `jobs` runs at once; each variant's figures when they are there."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ThreadPoolExecutor(jobs) as pool, progress_bar(total=len(runs), title="ablation", unit="run") as bar:
        started = {pool.submit(figures_of, run, config, device, overrides, threads): run for run in runs}
        try:
            for done in as_completed(started):
                scores, run = done.result(), started[done]
                bar.update()
                for variant in run.variants:
                    yield variant, scores[variant.prediction]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def figures_of(
    run: Run, config: Path, device: str, overrides: tuple[str, ...], threads: int
) -> dict[Prediction, SeedFigures]:
    """Those that the run has, where its weights are still the ones that were scored; else trained and scored now."""
    train(config, run.folder, device, (*overrides, *run.variants[0].overrides, f"seed={run.seed}"), threads)
    file, weights = run.folder / FIGURES, (run.folder / LAST).stat()
    stamp = weights.st_size, weights.st_mtime_ns
    known = Scores.load(file) if file.exists() else None
    scores = dict(known.scores) if known and known.weights == stamp else {}
    for prediction in {variant.prediction for variant in run.variants} - scores.keys():
        scores[prediction] = score(run, device, prediction)
        Scores(weights=stamp, scores=scores).save(file)
    return scores


def train(config: Path, folder: Path, device: str, overrides: tuple[str, ...], threads: int) -> None:
    """`upsnet train` in a process of its own, whose output goes to a log beside the folder; a finished run ends at
    once. InputError where it fails."""
    command = [sys.executable, "-m", "training.train", "--config", str(config), "--out", str(folder)]
    command += ["--device", device, *(word for override in overrides for word in ("--set", override))]
    log = folder.with_name(folder.name + ".log")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, env=environment, stdout=stream, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise InputError(f"{folder}: training ended with exit status {done.returncode}; {log} says why")


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
