"""The heuristic merge where each mask's acceptance depends on the ones before it: a GPU settles them in rounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import plugins_cuda
from plugins_cuda.panoptic_fusion import reference
from tests.plugins_cuda.conftest import COMPILED, Front, front_fixture

pytestmark = pytest.mark.numeric
front = front_fixture(COMPILED)

ROUNDS = 8  # kRounds of plugins_cuda/panoptic_fusion/kernel.cuh
Inputs = dict[str, Any]  # keyword arguments


def make_inputs(boxes: Tensor, width: int, height: int = 2) -> Inputs:
    """Images of 4 height x 4 width pixels, and boxes [B, N, 4] that their masks fill, but for corners."""
    batch, rows = boxes.shape[:2]
    random = torch.Generator().manual_seed(0)
    return {
        "semantic": torch.randn(batch, 5, height, width, generator=random),
        "boxes": boxes,
        "classes": torch.arange(rows).repeat(batch, 1),
        "scores": torch.linspace(1, 0.5, rows).repeat(batch, 1),
        "mask_logits": torch.full((batch, rows, 8, 8), 30.0),
        "counts": torch.full((batch,), rows, dtype=torch.int32),
        "sizes": torch.tensor([[4 * height, 4 * width]] * batch, dtype=torch.int32),
        "scales": torch.ones(batch),
        "num_stuff": 3,
        "stuff_area_limit": 20.0,
        "heuristic": True,
    }


def intervals(first: Tensor, length: Tensor, height: int = 2) -> Tensor:
    """Boxes [B, N, 4] as high as the image."""
    bottom = torch.full_like(first, 4 * height)
    return torch.stack([first, torch.zeros_like(first), first + length, bottom], dim=-1).float()


def check(front: Front, inputs: Inputs, overlap: float = 0.5) -> list[list[int]]:
    """Against the definition; the rows of every image that are in the table."""
    on_device: Inputs = {
        name: value.to(front.device) if isinstance(value, Tensor) else value for name, value in inputs.items()
    }
    actual = plugins_cuda.panoptic_fusion(**on_device, mask_overlap_threshold=overlap)
    wide: Inputs = {**inputs, "semantic": inputs["semantic"].double()}
    expected = reference.panoptic_fusion(**wide, mask_overlap_threshold=overlap)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one.cpu().numpy(), other.numpy())
    return [[int(row[0]) - 3 for row in table if row[0] >= 3] for table in expected[1]]


def rounds_of(inputs: Inputs, overlap: float = 0.5, image: int = 0) -> int:
    """How many rounds it takes until all are settled: by what a mask has, at least and at most, on the accepted ones
    before it."""
    height, width = (4 * size for size in inputs["semantic"].shape[2:])
    masks = reference.pasted_masks(inputs["mask_logits"][image], inputs["boxes"][image], height, width)
    areas, rounds = masks.sum((1, 2)), 0
    accepted, is_open = torch.zeros(len(masks), dtype=torch.bool), torch.ones(len(masks), dtype=torch.bool)
    while is_open.any():
        least, most = torch.zeros_like(masks[0]), torch.zeros_like(masks[0])
        before = accepted.clone(), is_open.clone()
        for row, mask in enumerate(masks):
            low, high = ((mask & union).sum() / areas[row] <= overlap for union in (least, most))
            accepted[row] |= before[1][row] & (areas[row] > 0) & high
            is_open[row] &= (areas[row] > 0) & low & ~high
            least = least | mask if before[0][row] else least
            most = most | mask if before[0][row] or before[1][row] else most
        rounds += 1
    return rounds


def links(count: int) -> Tensor:
    """Intervals [1, N, 4], 8 pixels long and 3 apart: each covers 5 pixels of the next one, and 2 of the one after."""
    return intervals(3 * torch.arange(count)[None], torch.full((1, count), 8))


@pytest.mark.parametrize("height", [2, 20])  # one block of words, and two
def test_every_second_link_of_a_chain_stays(front: Front, height: int) -> None:
    """Each decides about the next: a round settles one."""
    inputs = make_inputs(links(40), 33, height)
    inputs["boxes"][..., 3] = 4.0 * height
    assert rounds_of(inputs) == 40 > ROUNDS
    assert check(front, inputs) == [list(range(0, 40, 2))]


def test_chains_around_the_number_of_rounds(front: Front) -> None:
    """In one batch: from nothing to more links than the rounds settle."""
    counts = torch.arange(2 * ROUNDS + 4, dtype=torch.int32)
    inputs = make_inputs(links(len(counts)).repeat(len(counts), 1, 1), 17) | {"counts": counts}
    assert check(front, inputs) == [list(range(0, count, 2)) for count in counts]


@pytest.mark.parametrize("gap", [0, 1, 7])
def test_chain_after_others(front: Front, gap: int) -> None:
    """Some that are certain at once, first, between and last; in rows that are not in the order of places."""
    chain = 3 * torch.arange(24) + 200
    apart = 16 * torch.arange(8)
    first = torch.cat([apart[: 4 + gap // 2], chain[:9], apart[4 + gap // 2 :], chain[9:], apart + 1])
    inputs = make_inputs(intervals(first[None], torch.full((1, len(first)), 8)), 80)
    accepted = check(front, inputs)[0]
    assert rounds_of(inputs) > ROUNDS and len(accepted) == 8 + 12


@st.composite
def crowds(draw: st.DrawFn) -> tuple[Tensor, float]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch, rows, width = draw(st.integers(1, 3)), draw(st.integers(1, 40)), draw(st.sampled_from([16, 40, 120]))
    first = torch.from_numpy(rng.integers(-8, width, (batch, rows)))
    length = torch.from_numpy(2 ** rng.integers(2, draw(st.integers(3, 6)), (batch, rows)))
    return intervals(first, length), draw(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 0.75, 1.0]))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(drawn=crowds())
def test_crowds(front: Front, drawn: tuple[Tensor, float]) -> None:
    """Widths of powers of two: nothing rounds."""
    check(front, make_inputs(drawn[0], 33), drawn[1])


def test_some_crowds_take_several_rounds() -> None:
    """That test_crowds means something. None of 60 like them takes so many that the last block has to go on."""
    random, rounds = torch.Generator().manual_seed(1), []
    for _ in range(60):
        first = torch.randint(-8, 120, (1, 40), generator=random)
        length = 2 ** torch.randint(2, 6, (1, 40), generator=random)
        rounds.append(rounds_of(make_inputs(intervals(first, length), 33)))
    assert sum(each > 3 for each in rounds) > 20 and max(rounds) <= ROUNDS


@pytest.mark.usefixtures("other_order")
def test_order_of_emulated_threads_does_not_matter() -> None:
    assert check(Front("emulated"), make_inputs(links(20), 17)) == [list(range(0, 20, 2))]


def test_full_frames(front: Front) -> None:
    """All cover all: the first stays, as far as the limit lets more."""
    inputs = make_inputs(torch.tensor([0.0, 0, 132, 80]).repeat(1, 12, 1), 33, 20)
    assert check(front, inputs) == [[0]]
    check(front, inputs, 1.0)


def test_masks_with_large_cells(front: Front) -> None:
    """32 x 32 pixels and more between cells that agree, and such that do not."""
    inputs = make_inputs(torch.tensor([[0.0, 0, 132, 96], [-40.5, -30, 260.25, 150]]).repeat(1, 2, 1), 33, 24)
    random = torch.Generator().manual_seed(3)
    blobs = torch.randn(1, 4, 2, 2, generator=random).repeat_interleave(2, 2).repeat_interleave(2, 3)
    inputs["mask_logits"] = 4 * blobs + torch.randn(1, 4, 4, 4, generator=random) / 4
    assert check(front, inputs, 0.9)[0]
