"""Padded NMS of rows with a shortlist, more than 16 384 scores, and of rounds that hide in others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import plugins_cuda
from plugins_cuda import library
from plugins_cuda.nms import reference
from tests.plugins_cuda.conftest import Front, front_fixture, prepared

pytestmark = pytest.mark.numeric
front = front_fixture(["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])

FEW = 16384  # kFew in nms/launch.cu
INFINITE, NAN = float("inf"), float("nan")


def spread(batch: int, count: int, seed: int, side: float = 400.0) -> Tensor:
    """Boxes of 4 to 24 pixels, whole numbers, in a square."""
    generator = torch.Generator().manual_seed(seed)
    corner = (torch.rand(batch, count, 2, generator=generator) * side).round()
    return torch.cat([corner, corner + 4 + (torch.rand(batch, count, 2, generator=generator) * 20).round()], dim=-1)


def kinds(count: int, seed: int) -> dict[str, Tensor]:
    """Scores that try the shortlist and the bins."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(count, generator=generator)
    order = torch.arange(count, dtype=torch.float32)
    signed = torch.randn(count, generator=generator)
    return {
        "uniform": uniform,
        "softmax": (signed * 3 - 6).sigmoid(),
        "falling": 1 - order / count,
        "rising": order / count,
        "equal": torch.full((count,), 0.5),
        "two values": (uniform > 0.5).float() / 2 + 0.25,
        "half precision": uniform.half().float(),
        "saturated": (uniform * 1.1).clamp(max=1),
        "a stretch": torch.where((order - count / 3).abs() < 700, uniform + 1, uniform / 8),
        "one list": torch.where(order // 4 % -(-count // 128) == 1, uniform + 1, uniform),  # that of the second warp
        "neighbours": (uniform * 4096 + 0x3F000000).int().view(torch.float32),
        "signed": signed * 10.0 ** (signed * 9).round(),
        "zeros": torch.where(uniform > 0.5, 0.0, -0.0),
        "mostly NaN": torch.where(uniform < 0.99, NAN, uniform),
        "infinite": torch.where(uniform < 0.3, INFINITE, torch.where(uniform < 0.4, -INFINITE, signed)),
        "nothing": torch.full((count,), -INFINITE),
    }


KINDS = sorted(kinds(1, 0))


def check(front: Front, boxes: Tensor, scores: Tensor, *arguments: Any, **options: Any) -> Tensor:
    """The front gives the reference's integers; their number."""
    expected = reference.nms(boxes, scores, *arguments, **options)
    there: dict[str, Any] = {
        name: value.to(front.device) if isinstance(value, Tensor) else value for name, value in options.items()
    }
    found = plugins_cuda.nms(boxes.to(front.device), scores.to(front.device), *arguments, **there)
    torch.testing.assert_close(tuple(each.cpu() for each in found), expected, rtol=0, atol=0)
    return expected[1]


def classes_of(batch: int, count: int, different: int) -> Tensor:
    """Far apart, and some that differ in the upper half alone."""
    values = torch.arange(different) % 7 + (torch.arange(different) // 7 << 32)
    return values[torch.randint(different, (batch, count), generator=torch.Generator().manual_seed(count))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [FEW + 1, 20011])
def test_any_scores(front: Front, kind: str, count: int) -> None:
    """100 of many: what the shortlist is for; then more than it holds, with classes."""
    boxes, scores = spread(1, count, 1), kinds(count, 2)[kind][None]
    check(front, boxes, scores, 0.4, -INFINITE, 100)
    check(front, boxes, scores, 0.2, 0.25, 700, classes=classes_of(1, count, 30))


@pytest.mark.parametrize("most", [1, 100, 100_000])
def test_every_box_is_looked_at(front: Front, most: int) -> None:
    """One object under all boxes but a few, which have the lowest scores: every round runs, from first to last."""
    count = FEW + 3000
    boxes, scores = torch.tensor([10.0, 10, 50, 50]).repeat(1, count, 1), kinds(count, 5)["uniform"][None]
    lowest = scores[0].argsort()[:5]
    boxes[0, lowest] = spread(1, 5, 3) + 1000 * torch.arange(1, 6)[:, None]
    assert check(front, boxes, scores, 0.5, -1.0, most) == min(most, 6)
    assert check(front, boxes, torch.full_like(scores, 0.5), 0.5, -1.0, most) == min(most, 6)


def test_more_outputs_than_boxes(front: Front) -> None:
    count = FEW + 117
    boxes, scores = spread(1, count, 7, side=4000), kinds(count, 7)["softmax"][None]
    counts = check(front, boxes, scores, 0.5, -1.0, count + 50)
    assert counts[0] > FEW / 2
    boxes = 30 * torch.arange(count)[None, :, None] + torch.tensor([0.0, 0, 10, 10])
    assert check(front, boxes, kinds(count, 7)["half precision"][None], 0.5, -1.0, count + 50) == count


@pytest.mark.parametrize("count", [1, 31, 128, 1024, 1025, 5000, FEW, FEW + 1, 100_000])
def test_any_length(front: Front, count: int) -> None:
    boxes, scores = spread(1, count, count), kinds(count, count)["softmax"][None]
    check(front, boxes, scores, 0.3, 0.001, 150, classes=classes_of(1, count, 80))


def test_rows_have_shortlists_of_their_own(front: Front) -> None:
    count = FEW + 801  # odd: rows begin anywhere
    scores = torch.stack([kinds(count, row)[kind] for row, kind in enumerate(KINDS)])
    check(front, spread(len(KINDS), count, 4), scores, 0.5, 0.3, 60)


@pytest.mark.parametrize("order", ["reverse", "shuffle"])
def test_emulated_order_of_the_threads_does_not_matter(monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    monkeypatch.setenv("UPSNET_EMULATOR_ORDER", order)
    count = FEW + 500
    scores = torch.stack([kinds(count, 3)[kind] for kind in ("two values", "saturated", "falling")])
    with library.emulation():
        check(Front("emulated"), spread(3, count, 9, 100), scores, 0.3, 0.1, 300, classes=classes_of(3, count, 5))


def test_emulated_memory_of_earlier_runs_does_not_matter() -> None:
    """One workspace, as large as the largest shape wants, in which different shapes run one after the other."""
    served = library.load("emulated")
    workspace: Tensor | None = None
    for batch, count, most in ((2, 40_000, 300), (1, FEW + 1, 300), (3, FEW, 300), (1, 7, 300), (2, 30_001, 300)):
        boxes = spread(batch, count, count)
        scores = torch.stack([kinds(count, row)["saturated"] for row in range(batch)])
        values: dict[str, Any] = {
            "boxes": boxes,
            "scores": scores,
            "iou_threshold": 0.3,
            "score_threshold": 0.1,
            "max_output": most,
        }
        values |= {"classes": classes_of(batch, count, 4), "inclusive": False}
        expected = reference.nms(**values)
        params, outputs, _held = prepared("nms", values)
        asked = served.workspace_size("nms", params)
        if workspace is None:
            workspace = torch.full((asked,), 0xFF, dtype=torch.uint8)
        assert asked <= len(workspace)
        for _ in range(2):
            for output in outputs:
                output.fill_(-1)
            served.run("nms", params, torch.device("cpu"), workspace)
            torch.testing.assert_close(tuple(outputs), expected, rtol=0, atol=0)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(FEW - 200, FEW + 2000) | st.integers(1, 3000),
    kind=st.sampled_from(KINDS),
    side=st.sampled_from([20.0, 300.0, 3000.0]),
    iou=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    least=st.sampled_from([-INFINITE, 0.0, 0.5, 0.97]),
    most=st.sampled_from([1, 50, 600]),
    different=st.sampled_from([0, 1, 80]),
)
def test_drawn_rows(
    front: Front, seed: int, count: int, kind: str, side: float, iou: float, least: float, most: int, different: int
) -> None:
    classes = classes_of(1, count, different) if different else None
    check(front, spread(1, count, seed, side), kinds(count, seed)[kind][None], iou, least, most, classes=classes)
