"""Padded NMS against torchvision, a brute-force loop, and the ONNX body."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from onnx import helper, numpy_helper
from torch import Tensor

import plugins_cuda
from plugins_cuda.nms import reference
from tests.plugins_cuda.conftest import Calling, RunNode, export, run_model, session_of
from tests.plugins_cuda.inputs import crowd

pytestmark = pytest.mark.numeric


def run_body(
    run_node: RunNode,
    boxes: Tensor,
    scores: Tensor,
    iou: float,
    least: float,
    most: int,
    classes: Tensor | None = None,
    inclusive: bool = False,
) -> list[np.ndarray]:
    attributes = {"iou_threshold": iou, "score_threshold": least, "max_output": most, "inclusive": int(inclusive)}
    inputs = {"boxes": boxes, "scores": scores}
    if classes is None:
        return run_node("PaddedNms", inputs, [torch.int64, torch.int32], **attributes)
    return run_node("PaddedBatchedNms", inputs | {"classes": classes}, [torch.int64, torch.int32], **attributes)


def assert_same(actual: Iterable[Any], expected: Iterable[Any]) -> None:
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def brute_force(
    boxes: list[list[float]],
    scores: list[float],
    iou: float,
    least: float,
    classes: list[int] | None = None,
    inclusive: bool = False,
) -> list[int]:
    pixel = int(inclusive)
    kept: list[int] = []
    candidates = sorted((i for i in range(len(scores)) if scores[i] > least), key=lambda i: (-scores[i], i))
    for i in candidates:
        for k in kept:
            if classes is not None and classes[k] != classes[i]:
                continue
            width = max(0.0, min(boxes[i][2], boxes[k][2]) - max(boxes[i][0], boxes[k][0]) + pixel)
            height = max(0.0, min(boxes[i][3], boxes[k][3]) - max(boxes[i][1], boxes[k][1]) + pixel)
            areas = [(b[2] - b[0] + pixel) * (b[3] - b[1] + pixel) for b in (boxes[i], boxes[k])]
            if width * height > max(0.0, iou * (sum(areas) - width * height)):
                break
        else:
            kept.append(i)
    return kept


def test_known_answer() -> None:
    # IoU of the first two: 5 x 10 / (100 + 100 - 50) = 1/3; the third is apart; the fourth equals the first.
    boxes = torch.tensor([[[0.0, 0, 10, 10], [5, 0, 15, 10], [50, 50, 60, 60], [0, 0, 10, 10]]])
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.95]])
    classes = torch.tensor([[7, 7, 7, -1]])
    cases: list[tuple[tuple[Any, ...], list[int]]] = [
        ((0.5, 0.0, 6), [3, 1, 2]),
        ((0.3, 0.0, 6), [3, 2]),
        ((0.5, 0.0, 2), [3, 1]),
        ((0.5, 0.8, 2), [3]),  # .8 is not > .8
        ((0.3, 0.0, 6, classes), [3, 0, 2]),
        # Corners inside the boxes: 6 x 11 / (121 + 121 - 66) = .375.
        ((0.374, 0.0, 6, None, True), [3, 2]),
        ((0.376, 0.0, 6, None, True), [3, 1, 2]),
    ]
    for arguments, expected in cases:
        indices, counts = plugins_cuda.nms(boxes, scores, *arguments)
        assert (indices.dtype, counts.dtype) == (torch.int64, torch.int32)
        padding = [0] * (arguments[2] - len(expected))
        assert (indices.tolist(), counts.tolist()) == ([expected + padding], [len(expected)])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("iou", [0.3, 0.5, 0.7])
def test_equals_torchvision_and_brute_force(run_node: RunNode, seed: int, iou: float) -> None:
    boxes, scores = crowd(3, 60, seed, whole=seed % 2 == 0)
    indices, counts = plugins_cuda.nms(boxes, scores, iou, 0.2, 50)
    assert_same(run_body(run_node, boxes, scores, iou, 0.2, 50), (indices, counts))
    for image in range(3):
        kept = indices[image, : counts[image]].tolist()
        assert kept == brute_force(boxes[image].tolist(), scores[image].tolist(), iou, 0.2)[:50]
        candidate = torch.nonzero(scores[image] > 0.2)[:, 0]
        expected = candidate[torchvision.ops.nms(boxes[image][candidate], scores[image][candidate], iou)]
        assert kept == expected[:50].tolist()


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("iou", [0.3, 0.7])
def test_classes_equal_batched_nms(run_node: RunNode, iou: float, whole: bool) -> None:
    boxes, scores = crowd(2, 150, 11, whole)
    classes = torch.randint(-2, 4, (2, 150), generator=torch.Generator().manual_seed(1)) * 10**9
    result = plugins_cuda.nms(boxes, scores, iou, 0.2, 150, classes)
    assert_same(run_body(run_node, boxes, scores, iou, 0.2, 150, classes), result)
    cut = plugins_cuda.nms(boxes, scores, iou, 0.2, 30, classes)
    assert_same(run_body(run_node, boxes, scores, iou, 0.2, 30, classes), cut)
    assert torch.equal(cut[0], result[0][:, :30])
    for image in range(2):
        kept = result[0][image, : result[1][image]].tolist()
        members = (boxes[image].tolist(), scores[image].tolist(), iou, 0.2, classes[image].tolist())
        assert kept == brute_force(*members)
        if whole:  # its offsets of the coordinates are exact then
            candidate = torch.nonzero(scores[image] > 0.2)[:, 0]
            small = classes[image][candidate] // 10**9 + 2
            expected = torchvision.ops.batched_nms(boxes[image][candidate], scores[image][candidate], small, iou)
            # Equal scores of two classes: batched_nms leaves their order open.
            assert sorted(kept) == sorted(candidate[expected].tolist())


@pytest.mark.parametrize("by_class", [False, True])
@pytest.mark.parametrize("inclusive", [False, True])
def test_arguments_together(run_node: RunNode, inclusive: bool, by_class: bool) -> None:
    boxes, scores = crowd(3, 90, 1, whole=True)
    scores[1, ::4] = float("nan")
    boxes[2, :30, 2] = boxes[2, :30, 0] - 0.75  # inverted; with the legacy pixel still a quarter wide
    classes = torch.randint(0, 3, (3, 90)) if by_class else None
    result = plugins_cuda.nms(boxes, scores, 0.45, 0.1, 60, classes, inclusive)
    assert_same(run_body(run_node, boxes, scores, 0.45, 0.1, 60, classes, inclusive), result)
    for image in range(3):
        labels = None if classes is None else classes[image].tolist()
        lists = (boxes[image].tolist(), scores[image].tolist())
        expected = brute_force(*lists, 0.45, 0.1, labels, inclusive)[:60]
        assert result[0][image, : result[1][image]].tolist() == expected


def test_equals_onnx_runtimes_operator() -> None:
    """[image, class, box] of NonMaxSuppression itself: every class of an image has the same boxes."""
    boxes, scores = crowd(2, 50, 21)
    per_class = torch.stack([scores, scores.flip(1), torch.rand(2, 50)], dim=1)  # [B, C, N]
    selected = onnx_nms(boxes, per_class, 20, 0.4, 0.25)
    flat = boxes[:, None].expand(2, 3, 50, 4).reshape(2, 150, 4)
    labels = torch.arange(3).repeat_interleave(50).expand(2, 150)
    indices, counts = plugins_cuda.nms(flat, per_class.reshape(2, 150), 0.4, 0.25, 150, labels)
    for image in range(2):
        kept = indices[image, : counts[image]]
        for label in range(3):
            expected = selected[(selected[:, 0] == image) & (selected[:, 1] == label), 2].tolist()
            assert (kept[kept // 50 == label] % 50).tolist()[:20] == expected


def onnx_nms(boxes: Tensor, scores: Tensor, most: int, iou: float, least: float) -> np.ndarray:
    numbers = {"most": np.array([most]), "iou": np.array([iou], np.float32), "least": np.array([least], np.float32)}
    graph = helper.make_graph(
        [helper.make_node("NonMaxSuppression", ["boxes", "scores", *numbers], ["selected"])],
        "nms",
        [helper.make_tensor_value_info(name, 1, [None] * 3) for name in ("boxes", "scores")],
        [helper.make_tensor_value_info("selected", 7, [None, 3])],
        [numpy_helper.from_array(value, name) for name, value in numbers.items()],
    )
    return session_of(graph).run(None, {"boxes": boxes.numpy(), "scores": scores.numpy()})[0]


def test_exported_with_classes() -> None:
    def suppress(boxes: Tensor, scores: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        return plugins_cuda.nms(boxes, scores, 0.5, 0.1, 30, classes, inclusive=True)

    def problem(batch: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
        return *crowd(batch, count, count), torch.randint(0, 3, (batch, count))

    batch, count = torch.export.Dim("batch"), torch.export.Dim("count")
    sizes = ({0: batch, 1: count},) * 3
    names = ["boxes", "scores", "classes"]
    model = export(Calling(suppress), problem(2, 50), input_names=names, dynamic_shapes=(sizes,))
    (node,) = model.graph.node
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    assert node.op_type == "PaddedBatchedNms"
    assert attributes == {
        "iou_threshold": 0.5,
        "score_threshold": np.float32(0.1),
        "max_output": 30,
        "inclusive": 1,
        "plugin_version": b"1",
        "plugin_namespace": b"",
    }
    for shape in ((2, 50), (3, 90), (1, 20)):
        boxes, scores, classes = problem(*shape)
        assert_same(run_model(model, boxes, scores, classes), reference.nms(boxes, scores, 0.5, 0.1, 30, classes, True))


@pytest.mark.parametrize("by_class", [False, True])
@pytest.mark.parametrize("shape", [(2, 0), (0, 5), (3, 1)])
def test_body_of_nothing(run_node: RunNode, shape: tuple[int, int], by_class: bool) -> None:
    boxes, scores = crowd(*shape, 3)
    classes = torch.zeros(shape, dtype=torch.int64) if by_class else None
    expected = reference.nms(boxes, scores, 0.5, 0.1, 6, classes)
    assert_same(run_body(run_node, boxes, scores, 0.5, 0.1, 6, classes), expected)


@pytest.mark.parametrize("top", [1, 7, 40])
def test_hostile_input(run_node: RunNode, top: int) -> None:
    boxes, scores = crowd(6, 40, 9)
    scores[0] = 0.5  # all ties
    scores[1, ::3] = float("nan")
    scores[2] = 0.0  # no candidate
    scores[3, 5] = float("inf")
    boxes[3, :8] = 0  # padded rows
    boxes[4, :, 2] = boxes[4, :, 0] - 1  # inverted
    boxes[5, :, 3] = boxes[5, :, 1]  # empty
    boxes[0, ::7, 2] = float("inf")
    boxes[1, 1::5, 1] = float("nan")
    indices, counts = reference.nms(boxes, scores, 0.5, 0.1, top)
    assert_same(run_body(run_node, boxes, scores, 0.5, 0.1, top), (indices, counts))
    assert counts[2] == 0
    assert not (set(indices[1, : counts[1]].tolist()) & set(range(0, 40, 3)))
    assert counts[4] == min(top, int((scores[4] > 0.1).sum()))


def test_iou_exactly_at_the_threshold_survives(run_node: RunNode) -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 7], [0, 0, 3, 10]]])
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6]])
    for iou, expected in ((0.5, [0, 1, 3]), (0.7, [0, 1, 3]), (0.75, [0, 1, 2, 3])):
        indices, counts = reference.nms(boxes, scores, iou, 0.0, 4)
        assert indices[0, : counts[0]].tolist() == expected
        np.testing.assert_array_equal(run_body(run_node, boxes, scores, iou, 0.0, 4)[0], indices.numpy())


def test_permutation_and_batch() -> None:
    boxes, scores = crowd(2, 80, 5)
    indices, counts = plugins_cuda.nms(boxes, scores, 0.5, 0.0, 80)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    moved, moved_counts = plugins_cuda.nms(boxes[:, order], scores[:, order], 0.5, 0.0, 80)
    assert torch.equal(counts, moved_counts)
    for image in range(2):
        assert torch.equal(order[moved[image, : counts[image]]], indices[image, : counts[image]])
        alone = plugins_cuda.nms(boxes[image : image + 1], scores[image : image + 1], 0.5, 0.0, 80)
        assert torch.equal(alone[0][0], indices[image])


@pytest.mark.parametrize("iou", [0.3, 0.5, 0.7])
def test_keeps_what_the_original_kept(run_node: RunNode, shared_data: Path, iou: float) -> None:
    golden = np.load(shared_data / "upsnet_golden" / "edge.npz")
    for name in ("nms_", "nms_exact_"):
        rows = torch.from_numpy(golden[f"{name}in"])[None]
        count = rows.shape[1]
        corners, scores = rows[..., :4].contiguous(), rows[..., 4].contiguous()
        # The original's widths are x2 - x1 + 1: exclusive corners are one further.
        for inclusive, boxes in ((True, corners), (False, corners + torch.tensor([0.0, 0, 1, 1]))):
            found = plugins_cuda.nms(boxes, scores, iou, -1.0, count, inclusive=inclusive)
            body = run_body(run_node, boxes, scores, iou, -1.0, count, inclusive=inclusive)
            for indices, counts in (found, body):
                assert indices[0, : counts[0]].tolist() == golden[f"{name}keep_{iou}"].tolist()
