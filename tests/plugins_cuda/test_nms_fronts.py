"""Padded NMS: every compiled front gives the integers of the reference; the operator inside PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import plugins_cuda
from plugins_cuda.nms import reference
from tests.plugins_cuda.conftest import FORWARD, Calling, Front, RunNode, assert_one_operator, front_fixture
from tests.plugins_cuda.inputs import crowd

pytestmark = pytest.mark.numeric
front = front_fixture(FORWARD)

INFINITE, NAN = float("inf"), float("nan")


def labels(batch: int, count: int, classes: int) -> Tensor:
    return torch.randint(0, classes, (batch, count), generator=torch.Generator().manual_seed(count)) * 10**10 - 3


def check(front: Front, boxes: Tensor, scores: Tensor, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """The operator on this front equals the reference; its result, on the CPU."""
    expected = reference.nms(boxes, scores, *arguments, **options)
    if options.get("classes") is not None:
        options["classes"] = options["classes"].to(front.device)
    indices, counts = plugins_cuda.nms(boxes.to(front.device), scores.to(front.device), *arguments, **options)
    assert (indices.dtype, counts.dtype) == (torch.int64, torch.int32)
    torch.testing.assert_close((indices.cpu(), counts.cpu()), expected, rtol=0, atol=0)
    return expected


@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("whole", [False, True])
def test_equals_the_reference(front: Front, whole: bool, classes: int, inclusive: bool) -> None:
    boxes, scores = crowd(2, 700, 3, whole)
    options = {"classes": labels(2, 700, classes) if classes else None, "inclusive": inclusive}
    for iou, least, most in ((0.5, 0.1, 1000), (0.3, 0.5, 20), (0.7, -INFINITE, 300)):
        _, counts = check(front, boxes, scores, iou, least, most, **options)
        assert (counts > 10).all()


def test_several_rounds(front: Front) -> None:
    """More candidates than one round holds; both conventions of classes, and a cut in the middle of a round."""
    boxes, scores = crowd(1, 5000, 5)
    check(front, boxes, scores, 0.3, 0.02, 4000)
    check(front, boxes, scores, 0.6, 0.0, 900, classes=labels(1, 5000, 80))
    check(front, boxes, scores, 0.1, 0.0, 900)


@pytest.mark.parametrize("case", ["equal scores", "few scores", "one object", "tiny differences", "negative"])
def test_scores_and_boxes_that_pile_up(front: Front, case: str) -> None:
    """Where one bin of the selection holds everything, and where nothing but one box survives."""
    boxes, scores = crowd(1, 4500, 6)
    if case == "equal scores":
        scores[:] = 0.25
    elif case == "few scores":
        scores = (scores * 2).round() / 2
    elif case == "one object":
        boxes[:] = torch.tensor([1.0, 2.0, 30.0, 40.0])
    elif case == "tiny differences":
        scores = 0.5 + scores * 1e-6
    else:
        scores = -scores * 1e30
    _, counts = check(front, boxes, scores, 0.5, -INFINITE, 300)
    assert counts[0] == (1 if case == "one object" else 300)


def test_scores_and_their_threshold_below_zero(front: Front, run_node: RunNode) -> None:
    """By hand: -1 and below are out; -0.25 goes before -0.5, which its box suppresses, and zeros by their index."""
    corners = [0.0, 0.0, 100.0, 0.0, 200.0, 300.0, 400.0]
    boxes = torch.tensor([[[x, 0.0, x + 10, 10.0] for x in corners]])
    scores = torch.tensor([[-0.5, -0.25, -1.0, -INFINITE, -0.0, 0.0, -1e-40]])
    indices, counts = check(front, boxes, scores, 0.5, -1.0, 6)
    assert (counts.tolist(), indices.tolist()) == ([4], [[4, 5, 6, 1, 0, 0]])
    attributes = {"iou_threshold": 0.5, "score_threshold": -1.0, "max_output": 6, "inclusive": 0}
    body = run_node("PaddedNms", {"boxes": boxes, "scores": scores}, [torch.int64, torch.int32], **attributes)
    assert [array.tolist() for array in body] == [indices.tolist(), counts.tolist()]
    _, counts = check(front, boxes, scores, 0.5, -INFINITE, 6)
    assert counts.tolist() == [5]


@pytest.mark.parametrize("inclusive", [False, True])
def test_hostile_boxes_and_scores(front: Front, inclusive: bool) -> None:
    boxes, scores = crowd(8, 60, 9, whole=True)
    scores[0] = 0.5
    scores[1, ::3] = NAN
    scores[2] = NAN
    scores[3, 5:9] = torch.tensor([INFINITE, INFINITE, -INFINITE, 0.0])
    boxes[3, :12] = 0  # padded rows
    boxes[4, :, 2] = boxes[4, :, 0] - 1  # inverted; empty in the legacy convention
    boxes[5, :, 3] = boxes[5, :, 1]
    boxes[6, ::2, 0] = -INFINITE
    boxes[6, ::3, 3] = INFINITE
    boxes[6, ::5, 1] = NAN
    boxes[7] *= 1e30  # areas overflow
    scores[7, ::2] *= -1
    scores[7, 1::4] = -0.0
    for least in (-INFINITE, 0.1):
        _, counts = check(front, boxes, scores, 0.0, least, 60, inclusive=inclusive)
        assert counts[2] == 0
    broken = ~boxes[6].isfinite().all(dim=1) & (scores[6] > 0.1)
    indices, counts = check(front, boxes, scores, 0.0, 0.1, 60, inclusive=inclusive)
    kept = set(indices[6, : counts[6]].tolist())
    assert set(torch.nonzero(broken)[:, 0].tolist()) <= kept  # they overlap nothing
    for boundary in (INFINITE, 1e38):
        check(front, boxes, scores, 1.0, boundary, 60, inclusive=inclusive)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (1, 1), (3, 2), (1, 33), (2, 257)])
def test_small_and_empty(front: Front, shape: tuple[int, int]) -> None:
    boxes, scores = crowd(*shape, 1)
    for most in (0, 1, 5, 300):
        check(front, boxes, scores, 0.5, 0.2, most)
        check(front, boxes, scores, 0.5, 0.2, most, classes=labels(*shape, 2))


@pytest.mark.usefixtures("other_order")
def test_order_of_the_threads_does_not_matter() -> None:
    boxes, scores = crowd(1, 2300, 12, whole=True)
    check(Front("emulated"), boxes, scores, 0.5, 0.1, 700, classes=labels(1, 2300, 2))


def test_rows_that_no_vector_load_fits(front: Front) -> None:
    """Rows of odd length begin off the 16-byte boundaries, and so do the tensors themselves."""
    memory = torch.zeros(3 * 13 * 5 + 1, device=front.device)[1:]
    boxes, scores = crowd(3, 13, 2)
    there_boxes = memory[: 3 * 13 * 4].view(3, 13, 4).copy_(boxes)
    there_scores = memory[3 * 13 * 4 :].view(3, 13).copy_(scores)
    indices, counts = plugins_cuda.nms(there_boxes, there_scores, 0.2, 0.3, 13)
    expected = reference.nms(boxes, scores, 0.2, 0.3, 13)
    torch.testing.assert_close((indices.cpu(), counts.cpu()), expected, rtol=0, atol=0)


@pytest.mark.parametrize("distribution", ["detections", "uniform", "equal", "nan"])
def test_eighty_thousand_pairs(front: Front, distribution: str) -> None:
    """1000 boxes x 80 classes -> 100."""
    boxes, _ = crowd(1, 1000, 7)
    boxes = boxes[:, :, None].expand(1, 1000, 80, 4).reshape(1, 80000, 4)
    classes = torch.arange(80).repeat(1000)[None]
    generator = torch.Generator().manual_seed(4)
    scores = {
        "detections": (torch.randn(1, 1000, 80, generator=generator) * 3).softmax(-1).reshape(1, 80000),
        "uniform": torch.rand(1, 80000, generator=generator),
        "equal": torch.full((1, 80000), 0.5),
        "nan": torch.full((1, 80000), NAN),
    }[distribution]
    _, counts = check(front, boxes, scores, 0.5, 0.05, 100, classes=classes)
    assert counts[0] == (0 if distribution == "nan" else 100)


corner = st.integers(-3, 12).map(float)
awkward = st.sampled_from([NAN, INFINITE, -INFINITE, -0.0, 1e-40, 3e38])


@st.composite
def small_problems(draw: st.DrawFn) -> tuple[Any, ...]:
    count = draw(st.integers(1, 40))
    boxes = draw(st.lists(st.tuples(*[st.one_of(corner, corner, awkward)] * 4), min_size=count, max_size=count))
    score = st.one_of(st.integers(-2, 3).map(float), awkward)
    scores = draw(st.lists(score, min_size=count, max_size=count))
    classes = draw(st.none() | st.lists(st.integers(-1, 1), min_size=count, max_size=count))
    return (
        torch.tensor([boxes]),
        torch.tensor([scores]),
        draw(st.sampled_from([0.0, 0.3, 0.5, 1.0])),
        draw(st.sampled_from([-INFINITE, -1.0, 0.0, 0.5])),
        draw(st.integers(0, 45)),
        None if classes is None else torch.tensor([classes]),
        draw(st.booleans()),
    )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(problem=small_problems())
def test_drawn_input(front: Front, problem: tuple[Any, ...]) -> None:
    *arguments, classes, inclusive = problem
    check(front, *arguments, classes=classes, inclusive=inclusive)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_computed_in_float32(front: Front, dtype: torch.dtype) -> None:
    boxes, scores = (tensor.to(dtype) for tensor in crowd(1, 100, 14))
    found = check(front, boxes, scores, 0.4, 0.1, 50)
    assert all(map(torch.equal, found, reference.nms(boxes.float(), scores.float(), 0.4, 0.1, 50)))


def test_threshold_is_rounded_to_float32(front: Front) -> None:
    """An IoU of float32 .1 is not over .1 rounded to float32. It is over the double .1, with which torchvision compares
    on a CPU."""
    boxes, scores = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 1]]]), torch.tensor([[0.9, 0.8]])
    _, counts = check(front, boxes, scores, 0.1, 0.0, 2)
    assert counts.tolist() == [2]
    rounded = torch.tensor(0.1).item()
    kept = [torchvision.ops.nms(boxes[0], scores[0], threshold).tolist() for threshold in (0.1, rounded)]
    assert kept == [[0], [0, 1]]


def test_operator_is_well_formed() -> None:
    boxes, scores = crowd(2, 30, 1)
    for classes in (None, labels(2, 30, 3)):
        torch.library.opcheck(torch.ops.upsnet.nms.default, (boxes, scores, 0.5, 0.1, 10, classes, False))


def keep_ten(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    return plugins_cuda.nms(boxes, scores, 0.5, 0.1, 10)


def test_compiled_and_exported_graphs_hold_one_operator() -> None:
    assert_one_operator("nms", keep_ten, crowd(2, 30, 1))


def test_exported_for_any_size() -> None:
    batch, count = torch.export.Dim("batch"), torch.export.Dim("count")
    network = Calling(keep_ten)
    program = torch.export.export(network, crowd(2, 30, 1), dynamic_shapes=(({0: batch, 1: count},) * 2,))
    other = crowd(3, 50, 2)
    expected = reference.nms(*other, 0.5, 0.1, 10)
    torch.testing.assert_close(program.module()(*other), expected, rtol=0, atol=0)


def test_takes_boxes_that_want_a_gradient() -> None:
    boxes, scores = crowd(1, 20, 1)
    indices, _ = plugins_cuda.nms(boxes.requires_grad_(), scores.requires_grad_(), 0.5, 0.1, 10)
    assert not indices.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": torch.zeros(2, 5, 3)}, r"boxes must be floating point \[B, N, 4\], got torch.float32 \(2, 5, 3\)"),
        ({"boxes": torch.zeros(2, 5, 4, dtype=torch.int64)}, "boxes must be floating point"),
        ({"scores": torch.zeros(2, 6)}, r"scores must be .* = \(2, 5\), got torch.float32 \(2, 6\)"),
        ({"classes": torch.zeros(2, 4, dtype=torch.int64)}, r"classes must be int64 .*got torch.int64 \(2, 4\)"),
        ({"classes": torch.zeros(2, 5)}, "classes must be int64 .*got torch.float32"),
        ({"iou_threshold": -0.1}, r"iou_threshold must lie in 0..1, got -0.1"),
        ({"iou_threshold": NAN}, "iou_threshold must lie"),
        ({"score_threshold": NAN}, "score_threshold must be a number"),
        ({"max_output": -1}, "max_output must be at least 0, got -1"),
        ({"max_output": 2**31}, "max_output must be at most 2147483647, got 2147483648"),
        ({"max_output": 2**32 + 3}, "max_output must be at most 2147483647, got 4294967299"),
    ],
)
def test_refuses(front: Front, change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"boxes": torch.zeros(2, 5, 4), "scores": torch.zeros(2, 5)}
    arguments |= {"iou_threshold": 0.5, "score_threshold": 0.0, "max_output": 3}
    with pytest.raises(ValueError, match=message):
        plugins_cuda.nms(**(arguments | change))
