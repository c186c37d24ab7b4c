"""Results by hand."""

from __future__ import annotations

import numpy as np

from upsnet.result import PanopticResult, Segment
from upsnet.run_lengths import areas_and_boxes


def result_of(ids: np.ndarray, categories: dict[int, int], score: float = 0.9) -> PanopticResult:
    """categories: id -> contiguous category, in the order of the segments."""
    found = areas_and_boxes(ids)
    return PanopticResult(ids, [Segment(id, category, score, *found[id]) for id, category in categories.items()])
