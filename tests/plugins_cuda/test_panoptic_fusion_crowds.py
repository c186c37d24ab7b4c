"""Many masks over one another, of one class or some: who is accepted depends on who was before, on every front."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from plugins_cuda.panoptic_fusion import reference
from tests.plugins_cuda.conftest import COMPILED, Front, front_fixture
from tests.plugins_cuda.test_panoptic_fusion_chains import Inputs, check, make_inputs

pytestmark = pytest.mark.numeric
front = front_fixture(COMPILED)

ROUNDS = 8  # kRounds of plugins_cuda/panoptic_fusion/kernel.cuh
THRESHOLDS = [-1.0, 0.0, 0.25, 0.3, 0.5, 1.0]


def boxes_of(left: Tensor, top: Tensor, width: Tensor, height: Tensor, heuristic: bool) -> Tensor:
    """[B, N, 4] around whole pixels: inclusive corners, in the heuristic merge exclusive ones."""
    last = 0 if heuristic else 1
    return torch.stack([left, top, left + width - last, top + height - last], dim=-1).float()


def crowd(boxes: Tensor, classes: Tensor, heuristic: bool, width: int = 33, height: int = 10) -> Inputs:
    """Masks that fill their boxes, of three classes at most."""
    inputs = make_inputs(boxes, width, height) | {"classes": classes.expand(boxes.shape[:2]), "heuristic": heuristic}
    batch = len(boxes)
    random = torch.Generator().manual_seed(1)
    inputs["semantic"] = torch.randn(batch, 3 + (1 if heuristic else 3), height, width, generator=random)
    return inputs


def links(count: int, heuristic: bool) -> Tensor:
    """Each covers 5 of the 8 columns of the next one, and 2 of the one after."""
    first = 3 * torch.arange(count)[None]
    return boxes_of(first, torch.zeros_like(first), torch.full_like(first, 8), torch.full_like(first, 40), heuristic)


def accepted(inputs: Inputs, threshold: float, image: int = 0) -> list[int]:
    """By the definition."""
    height, width = (4 * side for side in inputs["semantic"].shape[2:])
    make = reference.pasted_masks if inputs["heuristic"] else reference.mask_terms
    masks = make(inputs["mask_logits"][image], inputs["boxes"][image], height, width) > 0
    classes = torch.zeros_like(inputs["classes"][image]) if inputs["heuristic"] else inputs["classes"][image]
    return reference.prune(masks, classes, threshold).tolist()


@pytest.mark.parametrize("heuristic", [False, True])
@pytest.mark.parametrize("count", [1, 2, ROUNDS, 2 * ROUNDS, 2 * ROUNDS + 1, 40])
def test_chains(front: Front, count: int, heuristic: bool) -> None:
    """Each decides about the next: a round settles one of them, and those after that are settled one by one."""
    inputs = crowd(links(count, heuristic), torch.tensor([0]), heuristic)
    assert accepted(inputs, 0.5) == list(range(0, count, 2))
    check(front, inputs)


def test_chains_of_three_classes_in_turn(front: Front) -> None:
    """Rows of a class lie apart, and between them are some that are dropped, of classes that do not exist."""
    boxes = links(20, False).repeat_interleave(4, dim=1)
    classes = torch.tensor([2, 0, 7, 1]).repeat(20)[None]
    inputs = crowd(boxes, classes, False)
    assert accepted(inputs, 0.5)[:8] == [0, 1, 2, 3, 8, 9, 10, 11]
    check(front, inputs)


def test_images_take_as_many_rounds_as_they_need(front: Front) -> None:
    """In one batch: none, some, all; chains of other lengths, and padding that cuts one off."""
    counts = torch.tensor([0, 3, 40, 1, 17, 40], dtype=torch.int32)
    inputs = crowd(links(40, False).repeat(6, 1, 1), torch.tensor([1]), False) | {"counts": counts}
    inputs["sizes"][5] = torch.tensor([13, 61])
    check(front, inputs)


@pytest.mark.parametrize("heuristic", [False, True])
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_nested_identical_and_empty(front: Front, threshold: float, heuristic: bool) -> None:
    step = torch.arange(12)[None]
    outward = boxes_of(40 - 3 * step, 18 - step, 16 + 6 * step, 4 + 2 * step, heuristic)
    inward, same = outward.flip(1), outward[:, 5:6].expand(-1, 6, -1)
    inputs = crowd(torch.cat([same, outward, inward, same, outward - 500], dim=1), torch.tensor([0]), heuristic)
    inputs["mask_logits"][:, ::7] = -30.0  # no pixel
    check(front, inputs, threshold)
    inputs["classes"] = torch.arange(inputs["boxes"].shape[1])[None] % 3
    check(front, inputs, threshold)


def test_unions_decide_where_no_pair_does(front: Front) -> None:
    """Four masks cover a quarter each of the fifth; two that are one and the same cover no more than one."""
    for tops, kept in (([0, 10, 20, 30], 4), ([0, 0, 0, 0], 1)):
        rows = [[8.0, top, 71, top + 9] for top in tops] + [[8.0, 0, 71, 39]]
        inputs = crowd(torch.tensor([rows]), torch.tensor([0]), False)
        assert accepted(inputs, 0.5)[:kept] == list(range(kept))
        assert (4 in accepted(inputs, 0.5)) == (kept == 1)
        check(front, inputs)


@st.composite
def crowds(draw: st.DrawFn) -> tuple[Inputs, float]:
    """Masks with few cells, set or not; sides that are the cells' times powers of two: nothing rounds."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    heuristic = draw(st.booleans())
    batch, rows, cells = draw(st.integers(1, 3)), draw(st.integers(1, 60)), draw(st.sampled_from([1, 2, 4]))
    width, height = draw(st.sampled_from([(3, 4), (20, 9), (70, 18)]))
    left, top = (torch.from_numpy(rng.integers(-8, 4 * side, (batch, rows))) for side in (width, height))
    most = draw(st.integers(2, 6))
    across, down = (torch.from_numpy(cells * 2 ** rng.integers(1, most, (batch, rows))) for _ in range(2))
    classes = torch.from_numpy(rng.integers(-1 if draw(st.booleans()) else 0, draw(st.integers(1, 4)), (batch, rows)))
    inputs = crowd(boxes_of(left, top, across, down, heuristic), classes, heuristic, width, height)
    chance = draw(st.sampled_from([0.3, 0.8, 1.0]))
    inputs["mask_logits"] = torch.from_numpy(np.where(rng.random((batch, rows, cells, cells)) < chance, 32.0, -32.0))
    inputs["mask_logits"] = inputs["mask_logits"].float()
    inputs["sizes"] = torch.from_numpy(rng.integers(1, 4 * max(width, height), (batch, 2))).int()
    inputs["counts"] = torch.from_numpy(rng.integers(rows // 2, rows + 1, batch)).int()
    return inputs, draw(st.sampled_from(THRESHOLDS))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(drawn=crowds())
def test_any_crowd(front: Front, drawn: tuple[Inputs, float]) -> None:
    check(front, *drawn)


@pytest.mark.usefixtures("other_order")
def test_order_of_emulated_threads_does_not_matter() -> None:
    for heuristic in (False, True):
        check(Front("emulated"), crowd(links(30, heuristic), torch.tensor([0]), heuristic))


def test_as_many_of_one_class_as_fit(front: Front) -> None:
    """Over several tiles of words, and several planes of 16 masks."""
    first = torch.arange(251)[None]
    boxes = boxes_of(2 * first, first % 37, torch.full_like(first, 40), torch.full_like(first, 24), False)
    inputs: dict[str, Any] = crowd(boxes, torch.tensor([0]), False, 140, 16)
    check(front, inputs, 0.3)
