"""The RPN in detectron2's conventions against the proposals that its own code makes of the same maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from training.conventions import DETECTRON2
from training.model.rpn import RPN, RpnOutput
from training.model_config import RpnConfig

pytestmark = pytest.mark.numeric

Golden = dict[str, Tensor]
LEVELS = range(2, 7)
SIZE = torch.tensor([[240, 427]], dtype=torch.int32)


@pytest.fixture(scope="module")
def golden(shared_data: Path) -> Golden:
    arrays = np.load(shared_data / "panoptic_fpn_golden" / "r50.npz")
    wanted = ("rpn_", "anchors_", "proposal_")
    return {name: torch.from_numpy(arrays[name]) for name in arrays.files if name.startswith(wanted)}


@pytest.fixture(scope="module")
def maps(golden: Golden) -> list[Tensor]:
    return [torch.cat([golden[f"rpn_logits_p{level}"], golden[f"rpn_deltas_p{level}"]])[None] for level in LEVELS]


@pytest.fixture(scope="module")
def rpn() -> RPN:
    return RPN(8, RpnConfig(), DETECTRON2)


def by_level(values: Tensor, maps: list[Tensor]) -> list[Tensor]:
    return list(values.split([3 * each.shape[2] * each.shape[3] for each in maps]))


def test_anchors(rpn: RPN, golden: Golden, maps: list[Tensor]) -> None:
    for level, anchors in zip(LEVELS, by_level(rpn.anchors(RpnOutput(maps)), maps), strict=True):
        assert torch.equal(anchors[:12], golden[f"anchors_first12_p{level}"])
        assert torch.equal(anchors[-3:], golden[f"anchors_last3_p{level}"])


def test_decoded_anchors(rpn: RPN, golden: Golden, maps: list[Tensor]) -> None:
    output = RpnOutput(maps)
    decoded = DETECTRON2.decode(output.rows()[1][0], rpn.anchors(output), (1.0, 1.0))
    for level, boxes in zip(LEVELS, by_level(decoded, maps), strict=True):
        torch.testing.assert_close(boxes[::37], golden[f"rpn_decoded_p{level}_sample"], atol=1e-3, rtol=0)


def test_proposals(rpn: RPN, golden: Golden, maps: list[Tensor]) -> None:
    boxes, logits = rpn.ranked(RpnOutput(maps), SIZE, 1000)
    assert torch.equal(logits[0], golden["proposal_logits"])
    torch.testing.assert_close(boxes[0], golden["proposal_boxes"], atol=1e-3, rtol=0)


@pytest.mark.parametrize("dx", [float("nan"), float("inf"), -50.0], ids=["nan", "inf", "outside"])
def test_boxes_without_width_and_broken_ones_are_no_proposals(rpn: RPN, maps: list[Tensor], dx: float) -> None:
    """The others fill their places."""
    maps = [each.clone() for each in maps]
    maps[3][0, 1, 5, 6] = 100.0  # the best logit of all, of the second anchor
    maps[3][0, 3 + 4, 5, 6] = dx
    boxes, logits = rpn.ranked(RpnOutput(maps), SIZE, 1000)
    assert logits.max() < 50 and (logits > -torch.inf).all()
    assert boxes.isfinite().all() and ((boxes[..., 2:] - boxes[..., :2]) > 0).all()
