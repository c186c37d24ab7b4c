"""Padded NMS against torchvision, a brute-force loop, and the ONNX body."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

import plugins_cuda
from plugins_cuda.nms import reference


def crowd(batch: int, count: int, seed: int, whole: bool = False) -> tuple[Tensor, Tensor]:
    """Overlapping boxes and scores; whole: integer corners and few distinct scores, so that ties abound."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(batch, count, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + torch.rand(batch, count, 2, generator=generator) * 40 + 1], dim=-1)
    scores = torch.rand(batch, count, generator=generator)
    return (boxes.round(), (scores * 8).round() / 8) if whole else (boxes, scores)


def run_body(run_node, boxes: Tensor, scores: Tensor, iou: float, least: float, top: int) -> list[np.ndarray]:
    attributes = {"iou_threshold": iou, "score_threshold": least, "max_output": top}
    return run_node("PaddedNms", {"boxes": boxes, "scores": scores}, [torch.int64, torch.int32], **attributes)


def brute_force(boxes: np.ndarray, scores: np.ndarray, iou: float, least: float) -> list[int]:
    kept: list[int] = []
    for i in sorted((i for i in range(len(scores)) if scores[i] > least), key=lambda i: (-scores[i], i)):
        for k in kept:
            width = max(0.0, min(boxes[i][2], boxes[k][2]) - max(boxes[i][0], boxes[k][0]))
            height = max(0.0, min(boxes[i][3], boxes[k][3]) - max(boxes[i][1], boxes[k][1]))
            areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (boxes[i], boxes[k])]
            if width * height > iou * (sum(areas) - width * height):
                break
        else:
            kept.append(i)
    return kept


def test_known_answer():
    # IoU of the first two: 5 x 10 / (100 + 100 - 50) = 1/3; the third is apart; the fourth equals the first.
    boxes = torch.tensor([[[0.0, 0, 10, 10], [5, 0, 15, 10], [50, 50, 60, 60], [0, 0, 10, 10]]])
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.95]])
    indices, counts = plugins_cuda.nms(boxes, scores, 0.5, 0.0, 6)
    assert (indices.tolist(), counts.tolist()) == ([[3, 1, 2, 0, 0, 0]], [3])
    assert (indices.dtype, counts.dtype) == (torch.int64, torch.int32)
    indices, counts = plugins_cuda.nms(boxes, scores, 0.3, 0.0, 6)
    assert (indices.tolist(), counts.tolist()) == ([[3, 2, 0, 0, 0, 0]], [2])
    indices, counts = plugins_cuda.nms(boxes, scores, 0.5, 0.0, 2)
    assert (indices.tolist(), counts.tolist()) == ([[3, 1]], [2])
    indices, counts = plugins_cuda.nms(boxes, scores, 0.5, 0.8, 2)
    assert (indices.tolist(), counts.tolist()) == ([[3, 0]], [1])  # .8 is not > .8


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("iou", [0.3, 0.5, 0.7])
def test_equals_torchvision_and_brute_force(run_node, seed: int, iou: float):
    boxes, scores = crowd(3, 60, seed, whole=seed % 2 == 0)
    indices, counts = plugins_cuda.nms(boxes, scores, iou, 0.2, 50)
    body_indices, body_counts = run_body(run_node, boxes, scores, iou, 0.2, 50)
    np.testing.assert_array_equal(body_indices, indices.numpy())
    np.testing.assert_array_equal(body_counts, counts.numpy())
    for image in range(3):
        kept = indices[image, : counts[image]].tolist()
        assert kept == brute_force(boxes[image].tolist(), scores[image].tolist(), iou, 0.2)[:50]
        candidate = torch.nonzero(scores[image] > 0.2)[:, 0]
        expected = candidate[torchvision.ops.nms(boxes[image][candidate], scores[image][candidate], iou)]
        assert kept == expected[:50].tolist()


@pytest.mark.parametrize("top", [1, 7, 40])
def test_hostile_input(run_node, top: int):
    boxes, scores = crowd(6, 40, 9)
    scores[0] = 0.5  # all ties
    scores[1, ::3] = float("nan")
    scores[2] = 0.0  # no candidate
    scores[3, 5] = float("inf")
    boxes[3, :8] = 0  # padded rows
    boxes[4, :, 2] = boxes[4, :, 0] - 1  # inverted
    boxes[5, :, 3] = boxes[5, :, 1]  # empty
    indices, counts = reference.nms(boxes, scores, 0.5, 0.1, top)
    body_indices, body_counts = run_body(run_node, boxes, scores, 0.5, 0.1, top)
    np.testing.assert_array_equal(body_indices, indices.numpy())
    np.testing.assert_array_equal(body_counts, counts.numpy())
    assert counts[2] == 0
    assert not (set(indices[1, : counts[1]].tolist()) & set(range(0, 40, 3)))
    assert counts[4] == min(top, int((scores[4] > 0.1).sum()))


def test_iou_exactly_at_the_threshold_survives(run_node):
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 7], [0, 0, 3, 10]]])
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6]])
    for iou, expected in ((0.5, [0, 1, 3]), (0.7, [0, 1, 3]), (0.75, [0, 1, 2, 3])):
        indices, counts = reference.nms(boxes, scores, iou, 0.0, 4)
        assert indices[0, : counts[0]].tolist() == expected
        np.testing.assert_array_equal(run_body(run_node, boxes, scores, iou, 0.0, 4)[0], indices.numpy())


def test_permutation_and_batch():
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
def test_keeps_what_the_original_kept(run_node, shared_data: Path, iou: float):
    golden = np.load(shared_data / "upsnet_golden" / "edge.npz")
    for name in ("nms_", "nms_exact_"):
        rows = torch.from_numpy(golden[f"{name}in"])[None]
        # The original's widths are x2 - x1 + 1: exclusive corners are one further.
        boxes, scores = rows[..., :4] + torch.tensor([0.0, 0, 1, 1]), rows[..., 4].contiguous()
        expected = golden[f"{name}keep_{iou}"].tolist()
        indices, counts = plugins_cuda.nms(boxes, scores, iou, -1.0, rows.shape[1])
        assert indices[0, : counts[0]].tolist() == expected
        body, body_count = run_body(run_node, boxes, scores, iou, -1.0, rows.shape[1])
        assert body[0, : body_count[0]].tolist() == expected
