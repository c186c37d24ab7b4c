"""The ONNX body of the panoptic head, in ONNX Runtime, against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.agreement import assert_same_segments
from tests.plugins_cuda.conftest import RunNode
from tests.plugins_cuda.inputs import fusion_inputs
from tests.plugins_cuda.test_panoptic_fusion import MASK, STUFF, assert_same, fuse, random_inputs, run_body
from upsnet.runtimes.predictor import RawPrediction

pytestmark = pytest.mark.numeric


def assert_agree(body: list[np.ndarray], expected: list[np.ndarray]) -> None:
    """ONNX Runtime may round otherwise, and so differ where two logits nearly tie."""
    assert_same_segments(RawPrediction(*body), RawPrediction(*expected), identical=0.995, score=0.0)


@pytest.mark.parametrize("seed", range(6))
def test_body_where_nothing_rounds(run_node: RunNode, seed: int) -> None:
    """Logits on a coarse grid, boxes of the masks' size times powers of two: equal, and many pixels are ties."""
    inputs = random_inputs(seed, counts=[7, 4])
    for name in ("semantic", "mask_logits"):
        inputs[name] = inputs[name].round() / 2
    low = inputs["boxes"][..., :2].floor()
    sides = MASK * 2 ** torch.arange(14).remainder(3).reshape(2, 7, 1)
    inputs["boxes"] = torch.cat([low, low + sides - 1], -1)
    assert_same(run_body(run_node, inputs), fuse(inputs))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("counts", [[7], [0], [0, 0], [3, 0, 7, 1]])
def test_body_equals_reference(run_node: RunNode, seed: int, counts: list[int]) -> None:
    for sharp in (0.5, 5.0):
        inputs = random_inputs(seed, counts=counts, sharp=sharp)
        assert_agree(run_body(run_node, inputs), fuse(inputs))


@pytest.mark.parametrize("rows", [1, 7])
def test_body_without_things(run_node: RunNode, rows: int) -> None:
    inputs = fusion_inputs(12, counts=[0, 0], rows=rows)
    inputs["semantic"] = inputs["semantic"][:, :STUFF].contiguous()
    assert_agree(run_body(run_node, inputs, limit=0.0), fuse(inputs, limit=0.0))


@pytest.mark.parametrize("height, width, rows", [(16, 24, 20), (9, 5, 3)])
def test_body_at_other_sizes(run_node: RunNode, height: int, width: int, rows: int) -> None:
    inputs = random_inputs(11, counts=[rows, rows // 2], height=height, width=width, rows=rows)
    assert_agree(run_body(run_node, inputs), fuse(inputs))


def test_body_with_hostile_input(run_node: RunNode) -> None:
    inputs = random_inputs(21, counts=[7] * 8)
    boxes, logits = inputs["boxes"], inputs["mask_logits"]
    boxes[0, :, 2:] = boxes[0, :, :2]  # one pixel
    boxes[1, :, 2:] = boxes[1, :, :2] - 0.75  # inverted by less than a pixel
    boxes[2] += torch.tensor([40.0, 0, 40, 0])  # beyond the image
    boxes[3] -= 17.3  # partly or wholly before it
    boxes[4] = torch.tensor([-500.0, -400, 700, 900])
    logits[5] = -1.0  # empty masks
    inputs["scores"][6] = 0.5
    logits[6], boxes[6] = 1.0, torch.tensor([3.0, 3, 20, 20])  # all alike
    inputs["semantic"][7] = 0.0
    inputs["scales"][7] = 0.0
    for overlap in (0.0, 0.3, 1.0):
        for limit in (0.0, 1e6):
            assert_agree(run_body(run_node, inputs, limit, overlap), fuse(inputs, limit, overlap))


def test_padded_rows_and_batch_do_not_matter(run_node: RunNode) -> None:
    inputs = random_inputs(31, counts=[4, 2, 6])
    expected = fuse(inputs)
    for name in ("boxes", "scores", "mask_logits"):
        for image, count in enumerate(inputs["counts"]):
            inputs[name][image, count:] = float("nan")
    inputs["classes"][0, 4:] = 10**6
    assert_same(fuse(inputs), expected)
    assert_agree(run_body(run_node, inputs), expected)
    for image in range(3):
        alone = {name: tensor[image : image + 1] for name, tensor in inputs.items()}
        assert_agree(run_body(run_node, alone), [result[image : image + 1] for result in expected])
