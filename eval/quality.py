"""Every metric of a predictor on a part of a data set, in a form that parts computed elsewhere add up to the whole.

    part = measure(predictor, folder, folder.records[rank::world], ("pq", "miou", "ap"))
    parts = <all processes' parts, for instance by torch.distributed.gather_object>
    total = merge(parts)
    total.results(folder.categories)  # {"pq": .4, "pq_things": ..., "pq_stuff": ..., "miou": ..., "box_ap": ..., ...}

A `Partial` is small (counts, one confusion matrix, detections with run-length coded masks), picklable, and adds up
exactly: neither the number of parts nor their order changes a figure. Without PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import numpy as np
from tqdm import tqdm

from eval.average_precision import AveragePrecision
from eval.mean_iou import MeanIoU
from eval.pq_stat import PQStat
from panoptic.categories import Categories
from panoptic.dataset import PanopticFolder, Record, groups
from panoptic.errors import InputError
from panoptic.geometry import collate, to_network
from panoptic.predictor import DetailedPredictor, Prediction, Predictor, unpack
from panoptic.result import PanopticResult, decode

Metric = Literal["pq", "ap", "miou"]
METRICS: tuple[Metric, ...] = get_args(Metric)


class Partial:
    """What the chosen metrics have gathered; None where a metric was not asked for. `a += b` adds another part."""

    def __init__(self, metrics: Sequence[Metric], categories: Categories) -> None:
        unknown = [metric for metric in metrics if metric not in METRICS]
        if unknown or not metrics:
            raise InputError(f"metrics are {', '.join(METRICS)}, not {', '.join(map(repr, unknown)) or 'none'}")
        self.pq = PQStat() if "pq" in metrics else None
        self.ap = AveragePrecision() if "ap" in metrics else None
        self.miou = MeanIoU(len(categories)) if "miou" in metrics else None

    def __iadd__(self, other: Partial) -> Partial:
        for name in METRICS:
            mine, others = getattr(self, name), getattr(other, name)
            if (mine is None) != (others is None):
                raise ValueError(f"only one of the two parts has gathered {name}")
            if mine is not None:
                mine += others
        return self

    def add(self, record: Record, ids: np.ndarray, prediction: Prediction, categories: Categories) -> None:
        """One image: the truth's ids H x W, and what was predicted at that size. InputError names the image."""
        if self.pq is not None:
            score(self.pq, record, ids, prediction.result, categories)
        if self.ap is not None:
            assert prediction.instances is not None
            self.ap.accumulate(record.image_id, ids, record.segments, prediction.instances, categories)
        if self.miou is not None:
            assert prediction.semantic is not None
            self.miou.accumulate(ids, record.segments, prediction.semantic, categories, record.image_id)

    def results(self, categories: Categories) -> dict[str, float | None]:
        """Fractions; None where nothing counts: pq, pq_things, pq_stuff; miou; box_ap, mask_ap."""
        figures: dict[str, float | None] = {}
        if self.pq is not None:
            groups_ = self.pq.results(categories)["results"]
            figures |= {"pq": groups_["All"]["pq"], "pq_things": groups_["Things"]["pq"]}
            figures["pq_stuff"] = groups_["Stuff"]["pq"]
        if self.miou is not None:
            figures["miou"] = self.miou.results(categories)["miou"]
        if self.ap is not None:
            ap = self.ap.results(categories)
            figures |= {"box_ap": ap["box"]["AP"], "mask_ap": ap["mask"]["AP"]}
        return figures


def measure(
    predictor: Predictor,
    folder: PanopticFolder,
    records: Sequence[Record],
    metrics: Sequence[Metric] = ("pq",),
    batch_size: int = 1,
    progress: bool = False,
) -> Partial:
    """Predicts `records` (this process's share of folder.records, possibly none) and gathers `metrics`.

    "ap" and "miou" need a DetailedPredictor (training.predictor.ModelPredictor is one), else InputError, which also
    names an image that cannot be read. With batch_size 1 the grouping of the images, hence the number of processes,
    cannot change a pixel. Images are streamed. progress: a bar on stderr.
    """
    part = Partial(metrics, folder.categories)
    check_metrics(predictor, metrics)
    with tqdm(total=len(records), desc="evaluation", unit="image", disable=None if progress else True) as bar:
        for group in groups(list(records), batch_size):
            photos, truths = zip(*(folder.read(record) for record in group), strict=True)
            for record, ids, answer in zip(group, truths, predict(predictor, photos, metrics), strict=True):
                part.add(record, ids, answer, folder.categories)
            bar.update(len(group))
    return part


def merge(parts: Iterable[Partial]) -> Partial:
    """The sum of at least one part; the first one is changed."""
    total, *others = parts
    for other in others:
        total += other
    return total


def check_metrics(predictor: Predictor, metrics: Sequence[Metric]) -> None:
    """InputError when the predictor cannot give what the metrics need."""
    detailed = [metric for metric in metrics if metric != "pq"]
    if detailed and not isinstance(predictor, DetailedPredictor):
        raise InputError(
            f"{predictor.name} gives panoptic maps alone: {' and '.join(detailed)} need the runtime pytorch (the "
            f"exported graph has neither all detections nor the semantic map); or ask for --metrics pq"
        )


def predict(predictor: Predictor, photos: Sequence[np.ndarray], metrics: Sequence[Metric]) -> list[Prediction]:
    """The photos as one batch, with as much detail as the metrics need."""
    if isinstance(predictor, DetailedPredictor) and tuple(metrics) != ("pq",):
        return unpack(predictor.predict_detailed(photos))
    nets = [to_network(photo, predictor.manifest.resize) for photo in photos]
    raw = predictor.predict(*collate(nets))
    return [Prediction(decode(*row, net)) for *row, net in zip(*raw, nets, strict=True)]


def score(stat: PQStat, record: Record, ids: np.ndarray, result: PanopticResult, categories: Categories) -> None:
    """Adds one image to `stat`: truth ids H x W against a result with contiguous categories."""
    predicted = [{"id": segment.id, "category_id": categories[segment.category].id} for segment in result.segments]
    stat.accumulate(ids, record.segments, result.ids, predicted, image=record.image_id)
