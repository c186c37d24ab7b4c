"""Evaluation during training: every process predicts its share of the validation set, the first one adds up."""

from __future__ import annotations

import numpy as np

from training.distributed import Process, gather
from upsnet.datasets.folder import PanopticFolder, truth_result
from upsnet.draw import overlay
from upsnet.history.evaluation import Evaluation, Spread
from upsnet.history.observed import Observed, Picture
from upsnet.metrics.evaluation import METRICS, Watch, evaluate_records, merge, predict_records
from upsnet.runtimes.predictor import DetailedPredictor, Predictor

PICTURES = 4
SEEN_SHARE, LEAST_SEEN, MOST_SEEN = 5, 8, 100  # training images that are scored: one for so many validation images


def quality(
    predictor: Predictor, folder: PanopticFolder, images: int | None, process: Process, watch: Watch | None = None
) -> dict[str, float | None]:
    """PQ, mIoU and AP (fractions, see metrics/evaluation.py) of the first `images` images; {} on all processes but one.

    PQ alone of a network that gives no details. Images go through the network one by one, so that their number and that
    of the processes cannot change a figure. watch: is given each image of this process with what it scored alone.
    """
    share = folder.records[:images][process.rank :: process.world]
    metrics = METRICS if isinstance(predictor, DetailedPredictor) else METRICS[:1]
    parts = gather(evaluate_records(predictor, folder, share, metrics, watch=watch), process)
    return merge(parts).results(folder.categories) if process.first else {}


def pictures(predictor: Predictor, folder: PanopticFolder, images: int | None) -> dict[str, np.ndarray]:
    """The first few validation images: file name -> uint8 H x W x 3, the prediction beside the truth."""
    drawn = {}
    for record, photo, ids, prediction, _ in predict_records(predictor, folder, folder.records[:images][:PICTURES]):
        found = overlay(photo, prediction.result, folder.categories)
        truth = overlay(photo, truth_result(record, ids, folder.categories), folder.categories, scores=False)
        drawn[record.file_name] = np.concatenate([found, truth], axis=1)
    return drawn


def details(
    observed: Observed, predictor: Predictor, training: PanopticFolder, step: int, process: Process
) -> tuple[Evaluation, list[Picture]]:
    """Of all processes together, from what each has observed of its validation images: the line of evaluations.jsonl
    and the worst images. A few training images, the same at every step, are scored for it, too."""
    first, *others = gather(observed.drawn(), process)
    for other in others:
        first += other
    number = min(max(LEAST_SEEN, first.images // SEEN_SHARE), first.images, MOST_SEEN)
    return first.evaluation(step, seen(predictor, training, number, process)), first.pictures


def seen(predictor: Predictor, folder: PanopticFolder, number: int, process: Process) -> Spread | None:
    """The PQ of so many images, spread evenly over the folder."""
    places = np.linspace(0, len(folder) - 1, min(number, len(folder))).astype(int).tolist()
    observed = Observed(folder.categories, worst=0)
    share = [folder.records[place] for place in places[process.rank :: process.world]]
    evaluate_records(predictor, folder, share, METRICS[:1], watch=observed.add)
    first, *others = gather(observed, process)
    for other in others:
        first += other
    return first.spread()
