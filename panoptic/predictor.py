"""The interface that PyTorch, ONNX Runtime, TensorRT and a live Triton server all show to the rest of the project."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from panoptic.geometry import collate, to_network
from panoptic.manifest import Manifest
from panoptic.result import PanopticResult, decode


class RawPrediction(NamedTuple):
    """The graph's outputs for a batch."""

    panoptic: np.ndarray  # uint8 B x H x W: 0 void, else 1 + row in segments
    segments: np.ndarray  # float32 B x K x 7: contiguous category, score, area in network pixels, x1, y1, x2, y2
    segment_count: np.ndarray  # int32 B: valid rows


class Predictor(Protocol):
    """A loaded model. `predict` takes what `geometry.collate` returns."""

    name: str
    manifest: Manifest

    def predict(self, images: np.ndarray, sizes: np.ndarray, scales: np.ndarray) -> RawPrediction:
        """images uint8 B x H x W x 3, sizes int32 B x 2, scales float32 B."""
        ...

    def close(self) -> None:
        """Free what the predictor holds."""
        ...


def predict_photos(predictor: Predictor, photos: Sequence[np.ndarray]) -> list[PanopticResult]:
    """uint8 H x W x 3 photos of any sizes -> results at their own sizes, in batches of the manifest's max_batch."""
    results: list[PanopticResult] = []
    for start in range(0, len(photos), predictor.manifest.max_batch):
        nets = [
            to_network(photo, predictor.manifest.resize)
            for photo in photos[start : start + predictor.manifest.max_batch]
        ]
        raw = predictor.predict(*collate(nets))
        results += [
            decode(panoptic, segments, int(count), net)
            for panoptic, segments, count, net in zip(*raw, nets, strict=True)
        ]
    return results
