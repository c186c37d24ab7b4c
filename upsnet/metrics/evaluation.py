"""Every metric of a predictor on a part of a data set, in a form that parts computed elsewhere add up to the whole.

    part = evaluate_records(predictor, folder, folder.records[rank::world], ("pq", "miou", "ap"))
    parts = <all processes' parts, for instance by torch.distributed.gather_object>
    total = merge(parts)
    total.results(folder.categories)  # {"pq": .4, "pq_things": ..., "pq_stuff": ..., "miou": ..., "box_ap": ..., ...}

A `Partial` is small (counts, one confusion matrix, detections with run-length coded masks), picklable, and adds up
exactly: neither the number of parts nor their order changes a figure. Without PyTorch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from tqdm import tqdm

from upsnet.categories import Categories
from upsnet.datasets.folder import PanopticFolder, Record
from upsnet.datasets.parallel import chunked
from upsnet.datasets.segments import SegmentInfo
from upsnet.errors import InputError
from upsnet.geometry import collate, to_network
from upsnet.metrics.average_precision import AveragePrecision
from upsnet.metrics.mean_iou import MeanIoU
from upsnet.metrics.pq import PQStat
from upsnet.result import PanopticResult
from upsnet.runtimes.predictor import DetailedPredictor, Prediction, Predictor, decode_batch, unpack

Metric = Literal["pq", "ap", "miou"]
METRICS: tuple[Metric, ...] = get_args(Metric)


class Answer(NamedTuple):
    """One image of a data set with its truth and what was predicted."""

    record: Record
    photo: np.ndarray  # uint8 H x W x 3
    ids: np.ndarray  # the truth's, int32 H x W
    prediction: Prediction
    milliseconds: float  # this image's share of the predictor's call


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

    def add(self, answer: Answer, categories: Categories) -> None:
        """InputError names the image."""
        record, ids, prediction = answer.record, answer.ids, answer.prediction
        if self.pq is not None:
            score(self.pq, record, ids, prediction.result, categories)
        if self.ap is not None:
            assert prediction.instances is not None
            self.ap.accumulate(record.image_id, ids, record.segments, prediction.instances, categories)
        if self.miou is not None:
            assert prediction.semantic is not None
            self.miou.accumulate(ids, record.segments, prediction.semantic, categories, record.image_id)

    def report(self, categories: Categories) -> dict[str, Any]:
        """Everything: PQ's "results", "per_class" and "warnings" as `upsnet pq` has them, "ap" and "miou"."""
        report: dict[str, Any] = {}
        if self.pq is not None:
            report |= self.pq.results(categories) | {"warnings": self.pq.warnings}
        if self.ap is not None:
            report["ap"] = self.ap.results(categories)
        if self.miou is not None:
            report["miou"] = self.miou.results(categories)
        return report

    def results(self, categories: Categories) -> dict[str, float | None]:
        """The headlines, fractions, None where nothing counts: pq, pq_things, pq_stuff; miou; box_ap, mask_ap."""
        report = self.report(categories)
        figures: dict[str, float | None] = {}
        if self.pq is not None:
            for key, group in (("pq", "All"), ("pq_things", "Things"), ("pq_stuff", "Stuff")):
                figures[key] = report["results"][group]["pq"]
        if self.miou is not None:
            figures["miou"] = report["miou"]["miou"]
        if self.ap is not None:
            figures |= {"box_ap": report["ap"]["box"]["AP"], "mask_ap": report["ap"]["mask"]["AP"]}
        return figures


Watch = Callable[[Answer, Partial], None]


def predict_records(
    predictor: Predictor,
    folder: PanopticFolder,
    records: Sequence[Record],
    metrics: Sequence[Metric] = ("pq",),
    batch_size: int = 1,
) -> Iterator[Answer]:
    """Predicts `batch_size` consecutive records at a time, with as much detail as the metrics need, and streams them.

    Raises InputError naming an image that cannot be read.
    """
    for group in chunked(records, batch_size):
        photos, truths = zip(*(folder.read(record) for record in group), strict=True)
        predictions, milliseconds = predict_timed(predictor, photos, metrics)
        for record, photo, ids, prediction in zip(group, photos, truths, predictions, strict=True):
            yield Answer(record, photo, ids, prediction, milliseconds / len(group))


def evaluate_records(
    predictor: Predictor,
    folder: PanopticFolder,
    records: Sequence[Record],
    metrics: Sequence[Metric] = ("pq",),
    progress: bool = False,
    watch: Watch | None = None,
) -> Partial:
    """Predicts `records` (this process's share of folder.records, possibly none) and gathers `metrics`.

    "ap" and "miou" need a DetailedPredictor (training.predictor.UPSNetPredictor is one), else InputError, which also
    names an image that cannot be read. Images go through the network one by one, so that the number of processes
    cannot change a pixel. progress: a bar on stderr. watch: is given each image with what it scored alone.
    """
    part = Partial(metrics, folder.categories)
    check_metrics(predictor, metrics)
    answers = predict_records(predictor, folder, records, metrics)
    hidden = None if progress else True
    for answer in tqdm(answers, total=len(records), desc="evaluation", unit="image", disable=hidden):
        alone = Partial(metrics, folder.categories)
        alone.add(answer, folder.categories)
        part += alone
        if watch:
            watch(answer, alone)
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


def predict_timed(
    predictor: Predictor, photos: Sequence[np.ndarray], metrics: Sequence[Metric] = ("pq",)
) -> tuple[list[Prediction], float]:
    """The photos as one batch, with as much detail as the metrics need, and the milliseconds of the predictor's call.

    Details, and test-time augmentation with them, include the resizing of the photos.
    """
    if isinstance(predictor, DetailedPredictor) and (predictor.augments or tuple(metrics) != ("pq",)):
        start = time.perf_counter()
        details = predictor.predict_detailed(photos)
        milliseconds = 1e3 * (time.perf_counter() - start)
        return unpack(details), milliseconds
    nets = [to_network(photo, predictor.manifest.resize) for photo in photos]
    batch = collate(nets)
    start = time.perf_counter()
    raw = predictor.predict(batch)
    milliseconds = 1e3 * (time.perf_counter() - start)
    return [Prediction(result) for result in decode_batch(raw, nets)], milliseconds


def score(stat: PQStat, record: Record, ids: np.ndarray, result: PanopticResult, categories: Categories) -> None:
    """Adds one image to `stat`: truth ids H x W against a result with contiguous categories."""
    found = [SegmentInfo(segment.id, categories[segment.category].id) for segment in result.segments]
    stat.add(ids, record.segments, result.ids, found, record.image_id)
