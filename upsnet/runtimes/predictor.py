"""The interface that PyTorch, ONNX Runtime, TensorRT and a live Triton server all show to the rest of the project."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from upsnet.geometry import NetworkBatch, NetworkImage, collate, to_network, to_original
from upsnet.manifest import Manifest
from upsnet.result import PanopticResult, decode


class RawPrediction(NamedTuple):
    """The graph's outputs for a batch."""

    panoptic: np.ndarray  # uint8 B x H x W: 0 void, else 1 + row in segments
    segments: np.ndarray  # float32 B x K x 7: contiguous category, score, area in network pixels, x1, y1, x2, y2
    segment_count: np.ndarray  # int32 B: valid rows


class Predictor(Protocol):
    """A loaded model."""

    name: str
    manifest: Manifest

    @property
    def device_name(self) -> str:
        """What computes, for people: "cpu", "cuda:0 (NVIDIA H200)", "the server's"."""
        ...

    @property
    def kernels(self) -> str:
        """What runs our operators, for people: a compiled library's name, or what serves without one, and why."""
        ...

    def predict(self, batch: NetworkBatch) -> RawPrediction:
        """What the graph says about what `geometry.collate` returns."""
        ...

    def close(self) -> None:
        """Free what the predictor holds."""
        ...


class Instances(NamedTuple):
    """Detections of a batch as AP wants them, in descending score; rows from counts[b] on are padding."""

    boxes: np.ndarray  # float32 B x N x 4: x1, y1, x2, y2 in network pixels, x2 and y2 exclusive
    scores: np.ndarray  # float32 B x N
    categories: np.ndarray  # int64 B x N, contiguous
    counts: np.ndarray  # int32 B
    masks: np.ndarray  # float32 B x N x M x M: probabilities on a grid over the box


class Details(NamedTuple):
    """All that the network says about a batch of photos; maps and boxes at the size of `nets`."""

    nets: list[NetworkImage]
    raw: RawPrediction
    semantic: np.ndarray  # uint8 B x H x W: each pixel's likeliest contiguous category, or metrics.mean_iou.UNDECIDED
    instances: Instances


@runtime_checkable
class DetailedPredictor(Predictor, Protocol):
    """A predictor that also gives what mIoU and AP need; the exported graph does not hold it."""

    augments: bool  # predict_detailed answers from several views of each photo, hence otherwise than predict

    def predict_detailed(self, photos: Sequence[np.ndarray]) -> Details:
        """uint8 H x W x 3 photos of any sizes, as one batch."""
        ...


class Prediction(NamedTuple):
    """One photo's answer at its own size; `semantic` and `instances` only from a DetailedPredictor."""

    result: PanopticResult
    semantic: np.ndarray | None = None  # uint8 H x W, contiguous category
    instances: Instances | None = None  # of a batch of one, boxes in photo pixels, without padding


def predict_photos(predictor: Predictor, photos: Sequence[np.ndarray]) -> list[PanopticResult]:
    """uint8 H x W x 3 photos of any sizes -> results at their own sizes, in batches of the manifest's max_batch."""
    results: list[PanopticResult] = []
    for start in range(0, len(photos), predictor.manifest.max_batch):
        nets = [
            to_network(photo, predictor.manifest.resize)
            for photo in photos[start : start + predictor.manifest.max_batch]
        ]
        results += decode_batch(predictor.predict(collate(nets)), nets)
    return results


def decode_batch(raw: RawPrediction, nets: Sequence[NetworkImage]) -> list[PanopticResult]:
    """The answer for a batch -> one result a photo, at the photos' exact sizes."""
    return [
        decode(panoptic, segments, int(count), net) for panoptic, segments, count, net in zip(*raw, nets, strict=True)
    ]


def unpack(details: Details) -> list[Prediction]:
    """A batch's answers one by one, brought to the photos' exact sizes."""
    return [
        Prediction(result, to_original(semantic, net.size, net.original), _of_photo(details.instances, index, net))
        for index, (result, semantic, net) in enumerate(
            zip(decode_batch(details.raw, details.nets), details.semantic, details.nets, strict=True)
        )
    ]


def _of_photo(instances: Instances, index: int, net: NetworkImage) -> Instances:
    count = int(instances.counts[index])
    row = Instances(*(array[index : index + 1] for array in instances))
    height, width = (original / size for original, size in zip(net.original, net.size, strict=True))
    boxes = row.boxes[:, :count] * np.array([width, height, width, height], np.float32)
    return Instances(boxes, row.scores[:, :count], row.categories[:, :count], row.counts, row.masks[:, :count])
