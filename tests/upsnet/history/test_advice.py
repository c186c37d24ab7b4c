from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.upsnet.history.runs import an_evaluation, losses, make_run, qualities, spread
from upsnet.history.advice import advice
from upsnet.history.run import read_run


def said(folder: Path, rows: Sequence[dict[str, Any]], *evaluations: dict[str, Any]) -> list[str]:
    return advice(read_run(make_run(folder, rows, evaluations)))


@pytest.mark.parametrize(
    ("training", "validation", "parts"),
    [
        (spread(0.85), spread(0.62), True),
        (spread(0.70), spread(0.62), False),  # 8 points
        (spread(0.62), spread(0.85), False),
        (spread(0.85, 8, 0.3), spread(0.62), False),  # three standard errors are 32 points: it may be chance
        (spread(0.85, 1, 0.0), spread(0.62), False),
        (None, spread(0.62), False),
        (spread(0.85), None, False),
    ],
)
def test_training_and_validation_part(tmp_path: Path, training: Any, validation: Any, parts: bool) -> None:
    warnings = said(tmp_path, losses([1]), an_evaluation(1, training=training, validation=validation))
    assert len(warnings) == parts
    if parts:
        assert "a PQ of 85.0 (mean of 50), one that it has never seen 62.0" in warnings[0]


@pytest.mark.parametrize(
    ("course", "words"),
    [
        ([0.1, 0.2, 0.3, 0.4, 0.5], ""),
        ([0.5], ""),
        ([0.3, 0.5, 0.48], ""),  # one evaluation alone may be chance
        ([0.3, 0.5, 0.48, 0.47], "PQ falls: it was 50.0 at step 2, and is 47.0 now, 2 evaluations later"),
        ([0.3, 0.5, 0.495, 0.48], ""),  # the one before is half a point under the best
        ([0.5, 0.503, 0.501, 0.5], "PQ stalls: in the last 3 evaluations it has not risen over 50.0"),
        ([0.4, 0.5, None, 0.503, 0.501, 0.502], "PQ stalls"),
        ([0.0, 0.0, 0.0, 0.0], "PQ stalls"),
    ],
)
def test_course_of_pq(tmp_path: Path, course: list[float | None], words: str) -> None:
    warnings = said(tmp_path, losses([1]) + qualities(dict(enumerate(course, 1))))
    assert bool(warnings) == bool(words) and words in "".join(warnings)


def test_a_stall_names_the_learning_rate(tmp_path: Path) -> None:
    flat = qualities(dict.fromkeys(range(1, 6), 0.5))
    (high,) = said(tmp_path, losses([1, 2]) + flat)
    (low,) = said(tmp_path, losses([1]) + losses([2], lr=0.001) + flat)
    assert "lower learning rate often helps" in high and "low already" in low


def test_waiting_for_data(tmp_path: Path) -> None:
    assert said(tmp_path, losses([1, 2], data_share=0.6) + losses(range(3, 8))) == []  # only the last steps count
    (warning,) = said(tmp_path, losses(range(1, 9), data_share=0.6))
    assert "60% of the time" in warning and "data.workers" in warning
