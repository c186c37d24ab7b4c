"""The best anchors: by hand, against a plain loop, and every front against the definition."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import plugins_cuda
from plugins_cuda.best_anchors import reference
from plugins_cuda.boxes import grid_anchors
from plugins_cuda.library import definitions, emulation
from tests.plugins_cuda.conftest import Calling, Front, RunNode, assert_one_operator, export, front_fixture, run_model
from tests.plugins_cuda.inputs import anchor_maps

pytestmark = pytest.mark.numeric
Inputs = tuple[list[Tensor], Tensor, Tensor]
NOTHING = -math.inf
front = front_fixture(["cpu", "onnxruntime"])


def check(inputs: Inputs, top_n: int, inclusive: bool = False) -> tuple[Tensor, Tensor]:
    """The compiled front equals the definition: which anchors, and their boxes within the rounding of one exp."""
    expected = reference.best_anchors(*inputs, top_n, inclusive)
    boxes, scores = plugins_cuda.best_anchors(*inputs, top_n, inclusive)
    torch.testing.assert_close(scores, expected[1], rtol=0, atol=0, equal_nan=False)
    torch.testing.assert_close(boxes, expected[0], rtol=1e-6, atol=1e-4, equal_nan=True)
    return expected


def run_body(run_node: RunNode, inputs: Inputs, top_n: int, inclusive: bool) -> list[np.ndarray]:
    maps, base, sizes = inputs
    tensors = {**{f"p{level}": each for level, each in enumerate(maps, 2)}, "base_anchors": base, "sizes": sizes}
    outputs = [torch.float32, torch.float32]
    return run_node("BestAnchors", tensors, outputs, top_n=top_n, inclusive=int(inclusive))


def test_by_hand() -> None:
    """P2 has two cells and one anchor a cell; the right one moves by half its width and grows twice in height."""
    maps = [torch.zeros(1, 5, 1, 2 if level == 0 else 1) for level in range(5)]
    maps[0][0, :, 0, 1] = torch.tensor([1.0, 0.5, 0.0, 0.0, math.log(2.0)])
    base = torch.tensor([[[-4.0, -2, 4, 2]]]).expand(5, 1, 4)
    boxes, scores = reference.best_anchors(maps, base, torch.tensor([[3, 10]]), 3)
    assert scores[0, 0].tolist() == [1, 0, NOTHING] and scores[0, 1].tolist() == [0, NOTHING, NOTHING]
    # Around (4, 0): 8 x 4 becomes 8 x 8 around (8, 0), of which the image, 10 x 3, has 4 <= x <= 10, 0 <= y <= 3.
    torch.testing.assert_close(boxes[0, 0], torch.tensor([[4.0, 0, 10, 3], [0, 0, 4, 2], [0, 0, 0, 0]]))


@pytest.mark.parametrize("inclusive", [False, True])
def test_against_a_plain_loop(inclusive: bool) -> None:
    maps, base, sizes = anchor_maps(2, 6, 8)
    boxes, scores = reference.best_anchors(maps, base, sizes, 30, inclusive)
    one = float(inclusive)
    for image in range(2):
        for level, own in enumerate(maps):
            anchors = grid_anchors(base[level], own.shape[2], own.shape[3], 4 << level).tolist()
            cells = own[image].permute(1, 2, 0).reshape(-1, 15)
            rows = [(row[a].item(), row[3 + 4 * a : 7 + 4 * a].tolist()) for row in cells for a in range(3)]
            order = sorted(range(len(rows)), key=lambda i: (-rows[i][0], i))[:30]
            for place, (dx, dy, dw, dh) in enumerate(rows[i][1] for i in order):
                x1, y1, x2, y2 = anchors[order[place]]
                w, h = x2 - x1 + one, y2 - y1 + one
                x, y, w2, h2 = x1 + w / 2 + dx * w, y1 + h / 2 + dy * h, w * math.exp(dw), h * math.exp(dh)
                bottom, right = (sizes[image] - one).tolist()
                expected = [x - w2 / 2, y - h2 / 2, x + w2 / 2 - one, y + h2 / 2 - one]
                limits = [right, bottom, right, bottom]
                clipped = [min(max(each, 0.0), limit) for each, limit in zip(expected, limits, strict=True)]
                assert boxes[image, level, place].tolist() == pytest.approx(clipped, abs=1e-3)
                assert scores[image, level, place] == rows[order[place]][0]


@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize(
    ("size", "top_n"), [((24, 32), 100), ((24, 32), 3), ((4, 5), 500), ((70, 90), 1000), ((1, 1), 1)]
)
def test_fronts_equal_the_definition(
    front: Front, run_node: RunNode, size: tuple[int, int], top_n: int, inclusive: bool
) -> None:
    inputs = anchor_maps(2, *size, seed=top_n)
    boxes, scores = check(inputs, top_n, inclusive)
    found = run_body(run_node, inputs, top_n, inclusive)
    np.testing.assert_array_equal(found[1], scores.numpy())
    np.testing.assert_allclose(found[0], boxes.numpy(), rtol=1e-6, atol=1e-4)


def test_numbers_that_are_none(front: Front, run_node: RunNode) -> None:
    """NaN and -inf are no anchors, inf is the best; a delta that is NaN gives NaN in its own direction alone."""
    maps, _base, _sizes = inputs = anchor_maps(1, 4, 5)
    maps[0][0, 0, 0, :3] = math.nan
    maps[1][0, 1] = -math.inf
    maps[2][0, 2, 0, 0] = math.inf
    maps[2][0, 11, 0, 0] = math.nan  # x of the third anchor
    maps[3][0, :3] = math.nan
    boxes, scores = check(inputs, 90)
    assert not scores.isnan().any() and (scores[0, 3] == NOTHING).all() and not boxes[0, 3].any()
    assert scores[0, 2, 0] == math.inf and boxes[0, 2, 0].isnan().tolist() == [True, False, True, False]
    assert (scores[0, 0] > NOTHING).sum() == 57 and (scores[0, 1] > NOTHING).sum() == 8
    found = run_body(run_node, inputs, 90, False)
    np.testing.assert_array_equal(found[1], scores.numpy())
    np.testing.assert_array_equal((found[0] == 0).all(-1), (boxes == 0).all(-1).numpy())


def test_growth_is_limited() -> None:
    maps, base, _sizes = anchor_maps(1, 4, 5)
    for each in maps:
        each[:, 3:] = 100.0
    check((maps, base, torch.tensor([[10**6, 10**6]], dtype=torch.int32)), 20)


def test_layouts_types_and_threads() -> None:
    maps, base, sizes = anchor_maps(3, 24, 32)
    expected = plugins_cuda.best_anchors(maps, base, sizes, 50)
    last = [each.contiguous(memory_format=torch.channels_last) for each in maps]
    torch.set_num_threads(3)
    for other in (maps, last, [each.double() for each in maps]):
        found = plugins_cuda.best_anchors(other, base, sizes, 50)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_without_images_or_cells(front: Front) -> None:
    maps, base, sizes = anchor_maps(1, 4, 5)
    boxes, scores = plugins_cuda.best_anchors([each[:0] for each in maps], base, sizes[:0], 7)
    assert boxes.shape == (0, 5, 7, 4) and scores.shape == (0, 5, 7)
    check(([each[:, :, :0] for each in maps], base, sizes), 7)


@pytest.mark.parametrize("side", [2, 3])
@pytest.mark.parametrize("empty", [[0], [2], [4], [0, 1, 2, 3, 4]])
def test_body_of_levels_without_cells(side: int, empty: list[int], run_node: RunNode) -> None:
    maps, base, sizes = anchor_maps(2, 6, 8)
    maps = [each.narrow(side, 0, 0) if level in empty else each for level, each in enumerate(maps)]
    boxes, scores = run_body(run_node, (maps, base, sizes), 20, False)
    expected = reference.best_anchors(maps, base, sizes, 20)
    np.testing.assert_array_equal(scores, expected[1].numpy())
    np.testing.assert_allclose(boxes, expected[0].numpy(), atol=1e-4)


def test_where_no_kernel_is_the_definition_serves() -> None:
    inputs = anchor_maps(1, 6, 8)
    with definitions():
        expected = plugins_cuda.best_anchors(*inputs, 20)
    with emulation():  # it has no CUDA launcher
        torch.testing.assert_close(plugins_cuda.best_anchors(*inputs, 20), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("maps must have 10 channels", {"base_anchors": torch.zeros(5, 2, 4)}),
        ("maps must be p2, p3, p4, p5, p6", {"maps": [torch.zeros(1, 15, 4, 4)] * 4}),
        ("base_anchors must", {"base_anchors": torch.zeros(4, 3, 4)}),
        ("sizes must", {"sizes": torch.zeros(2, 2, dtype=torch.int32)}),
        ("top_n must", {"top_n": 0}),
    ],
)
def test_refused(name: str, changed: dict[str, Any]) -> None:
    maps, base, sizes = anchor_maps(1, 4, 4)
    with pytest.raises(ValueError, match=f"^best_anchors: {name}"):
        arguments: dict[str, Any] = {"maps": maps, "base_anchors": base, "sizes": sizes, "top_n": 3}
        plugins_cuda.best_anchors(**arguments | changed)


def nine_best(*tensors: Tensor) -> tuple[Tensor, Tensor]:
    base, sizes = tensors[5:]
    return plugins_cuda.best_anchors(tensors[:5], base, sizes, 9)


def test_in_pytorch() -> None:
    maps, base, sizes = anchor_maps(1, 8, 8)
    assert_one_operator("best_anchors", nine_best, (*maps, base, sizes))


def test_exported_with_any_size() -> None:
    network = Calling(nine_best)
    maps, base, sizes = anchor_maps(2, 32, 48)
    batch = torch.export.Dim("batch", min=1, max=8)
    dims = [{0: batch, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}] * 5
    model = export(network, (*maps, base, sizes), dynamic_shapes=((*dims, {}, {0: batch}),))
    maps, _, sizes = anchor_maps(3, 50, 33, seed=1)
    boxes, scores = run_model(model, *maps, base, sizes)
    expected = reference.best_anchors(maps, base, sizes, 9)
    np.testing.assert_array_equal(scores, expected[1].numpy())
    np.testing.assert_allclose(boxes, expected[0].numpy(), rtol=1e-6, atol=1e-4)
