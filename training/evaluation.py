"""Evaluation during training: every process predicts its share of the validation set, the first one adds up."""

from __future__ import annotations

import numpy as np

from training.distributed import Process, gather
from upsnet.datasets.folder import PanopticFolder, truth_result
from upsnet.draw import overlay
from upsnet.metrics.evaluation import METRICS, evaluate_records, merge, predict_records
from upsnet.runtimes.predictor import DetailedPredictor, Predictor

PICTURES = 4


def quality(
    predictor: Predictor, folder: PanopticFolder, images: int | None, process: Process
) -> dict[str, float | None]:
    """PQ, mIoU and AP (fractions, see metrics/evaluation.py) of the first `images` images; {} on all processes but one.

    PQ alone of a network that gives no details. Images go through the network one by one, so that their number and that
    of the processes cannot change a figure.
    """
    share = folder.records[:images][process.rank :: process.world]
    metrics = METRICS if isinstance(predictor, DetailedPredictor) else METRICS[:1]
    parts = gather(evaluate_records(predictor, folder, share, metrics), process)
    return merge(parts).results(folder.categories) if process.first else {}


def pictures(predictor: Predictor, folder: PanopticFolder, images: int | None) -> dict[str, np.ndarray]:
    """The first few validation images: file name -> uint8 H x W x 3, the prediction beside the truth."""
    drawn = {}
    for record, photo, ids, prediction, _ in predict_records(predictor, folder, folder.records[:images][:PICTURES]):
        found = overlay(photo, prediction.result, folder.categories)
        truth = overlay(photo, truth_result(record, ids, folder.categories), folder.categories, scores=False)
        drawn[record.file_name] = np.concatenate([found, truth], axis=1)
    return drawn
