"""The GPU interpolates only channels that can be the best of a cell, the CPU all of them: the integers are the same."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from plugins_cuda import library
from tests.plugins_cuda.conftest import Front
from tests.plugins_cuda.inputs import LAYOUTS, TYPES
from tests.plugins_cuda.test_panoptic_fusion_fronts import Inputs, make_inputs, run

pytestmark = pytest.mark.numeric
MERGES = [False, True]  # heuristic


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def kernels(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU")
    return request.param


def check(kernels: str, inputs: Inputs, **options: Any) -> list[Tensor]:
    """All channels at every pixel on the CPU, and the kernels: to the bit, with every area and every label seen."""
    expected = run(Front("cpu"), inputs, limit=0.0, **options)
    with library.emulation() if kernels == "emulated" else nullcontext():
        actual = run(Front(kernels), inputs, limit=0.0, **options)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    return actual


def logits_only(semantic: Tensor, stuff: int, heuristic: bool = False) -> Inputs:
    """One image without detections: its labels are the channels' alone."""
    inputs = make_inputs(0, counts=[0], rows=1, stuff=stuff, height=semantic.shape[2], width=semantic.shape[3])
    height, width = 4 * semantic.shape[2], 4 * semantic.shape[3]
    return inputs | {
        "semantic": semantic,
        "sizes": torch.tensor([[height, width]], dtype=torch.int32),
        "heuristic": heuristic,
    }


def nudged(values: Tensor, steps: Tensor) -> Tensor:
    """Each value moved by so many numbers of its own type."""
    bits = values.view(torch.int32 if values.dtype == torch.float32 else torch.int16)
    return (bits + steps.to(bits.dtype)).view(values.dtype)


@pytest.mark.parametrize("heuristic", MERGES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("seed", range(4))
def test_near_ties(kernels: str, dtype: torch.dtype, layout: torch.memory_format, heuristic: bool, seed: int) -> None:
    """All channels within four units in the last place of one map: of a magnitude, zero and denormal to 2^99 or the
    largest half, that is one cell's or (odd seeds) the whole map's."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, 9, 6, 37)
    low, high = (-20, 15) if dtype == torch.float16 else (-140, 99)
    power = torch.randint(low, high + 1, (1, 1, *(shape[2:] if seed % 2 == 0 else (1, 1))), generator=generator)
    base = (1 + torch.rand(1, 1, *shape[2:], generator=generator)).double() * 2.0 ** power.double()
    base = base * (torch.randint(0, 2, base.shape, generator=generator) * 2 - 1)
    semantic = nudged(base.to(dtype).expand(shape).contiguous(), torch.randint(-4, 5, shape, generator=generator))
    semantic = semantic.nan_to_num(nan=0.0).contiguous(memory_format=layout)
    check(kernels, logits_only(semantic, 5, heuristic))
    inputs = make_inputs(seed, counts=[6], stuff=5, things=4, height=6, width=37, dtype=dtype)
    check(kernels, inputs | {"semantic": semantic, "heuristic": heuristic})


@pytest.mark.parametrize("heuristic", MERGES)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_cells_with_no_others_around(kernels: str, dtype: torch.dtype, heuristic: bool, steps: int) -> None:
    """Many images of four cells: in larger ones what a cell leaves out a neighbour of the same warp may want. Any
    logits, or one map's within some units in the last place."""
    generator = torch.Generator().manual_seed(steps)
    semantic = torch.randn(300, 9, 2, 2, generator=generator)
    if steps:
        semantic = semantic[:, :1].to(dtype).expand(semantic.shape).contiguous()
        semantic = nudged(semantic, torch.randint(-steps, steps + 1, semantic.shape, generator=generator))
    inputs = make_inputs(1, counts=[0] * 300, rows=1, stuff=5, things=4, height=2, width=2)
    inputs["sizes"][:] = 8
    check(kernels, inputs | {"semantic": semantic.to(dtype), "heuristic": heuristic})


@pytest.mark.parametrize("dtype", TYPES)
def test_noise_of_many_channels(kernels: str, dtype: torch.dtype) -> None:
    """Most channels are left out by all cells of a warp, and one that is lost is seldom wanted by a neighbour."""
    generator = torch.Generator().manual_seed(5)
    semantic = torch.randn(1, 250, 9, 130, generator=generator).to(dtype)
    for heuristic in MERGES:
        check(kernels, logits_only(semantic, 200, heuristic))


@pytest.mark.parametrize("dtype", TYPES)
def test_the_highest_corner_may_just_reach_the_floor(kernels: str, dtype: torch.dtype) -> None:
    """Channel 1 is 1 everywhere. Channel 0 is 1 in some columns and just below in the others: it wins where both of a
    cell's corners are 1, and ties there alone. A channel that had to exceed the floor would be lost."""
    semantic = torch.ones(1, 2, 4, 40, dtype=dtype)
    lower = torch.arange(40) % 5 == 0
    semantic[0, 0, :, lower] = nudged(semantic[0, 0, :, lower], torch.tensor(-1))
    panoptic, _, count = check(kernels, logits_only(semantic, 2))
    between = ~lower[:-1] & ~lower[1:]
    assert count.tolist() == [2]
    for cell in torch.nonzero(between).flatten().tolist():
        assert (panoptic[0, :, 4 * cell + 2 : 4 * cell + 6] == 1).all()
    check(kernels, logits_only(torch.ones(1, 5, 3, 34, dtype=dtype), 5))


@pytest.mark.parametrize("heuristic", MERGES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("stuff, things", [(1, 0), (2, 1), (79, 81), (80, 15), (81, 161), (41, 39), (200, 7)])
def test_more_channels_than_fit_at_once(
    kernels: str, dtype: torch.dtype, layout: torch.memory_format, heuristic: bool, stuff: int, things: int
) -> None:
    inputs = make_inputs(stuff, counts=[4], rows=4, stuff=stuff, things=max(things, 1), height=3, width=35, dtype=dtype)
    inputs["semantic"] = inputs["semantic"][:, : stuff + things].contiguous(memory_format=layout)
    check(kernels, inputs | {"heuristic": heuristic})
    flat = inputs["semantic"] * 0
    flat[:, stuff - 1, :, 20:] = 1
    check(kernels, inputs | {"semantic": flat, "heuristic": heuristic})


@pytest.mark.parametrize("heuristic", MERGES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("share", [0.0005, 0.2])
def test_no_numbers_here_and_there(
    kernels: str, dtype: torch.dtype, layout: torch.memory_format, heuristic: bool, share: float
) -> None:
    """In some blocks, or in all: NaN, infinities, and what is largest, next to ordinary logits."""
    inputs = make_inputs(7, counts=[6, 0], stuff=6, things=5, height=9, width=70, dtype=dtype)
    bad = torch.tensor([float("nan"), float("inf"), -float("inf"), torch.finfo(dtype).max, -torch.finfo(dtype).max])
    generator = torch.Generator().manual_seed(3)
    where = torch.rand(inputs["semantic"].shape, generator=generator) < share
    inputs["semantic"][where] = bad[torch.randint(5, (int(where.sum()),), generator=generator)].to(dtype)
    inputs["semantic"] = inputs["semantic"].contiguous(memory_format=layout)
    check(kernels, inputs | {"heuristic": heuristic})


def test_things_below_the_stuff_can_be_unknown(kernels: str) -> None:
    """Every instance covers the whole block and counts -5 there: unknown is .5 + 5, more than stuff's 1, although its
    thing is below it."""
    inputs = make_inputs(0, counts=[1], rows=1, stuff=1, things=2, height=3, width=40)
    inputs["semantic"][:] = torch.tensor([1.0, -5.0, 0.5])[:, None, None]
    inputs["boxes"][:] = torch.tensor([0.0, 0, 159, 11])
    inputs["mask_logits"][:] = 0.125
    inputs["classes"][:] = 0
    assert not check(kernels, inputs)[0][0, :12, :160].any()
    inputs["boxes"][:] = torch.tensor([0.0, 0, 15, 11])  # elsewhere it counts 0, and stuff stays
    panoptic = check(kernels, inputs)[0]
    assert not panoptic[0, :12, :14].any() and panoptic[0, :12, 16:157].all()


@pytest.mark.parametrize("mask_size", [1, 33, 64, 65, 150, 512])
def test_masks_that_are_finer_than_their_pixels(kernels: str, mask_size: int) -> None:
    """Narrow boxes and wide ones, inverted, outside and endless ones: two cells a pixel, or few for all of them."""
    inputs = make_inputs(8, counts=[8], rows=8, mask_size=mask_size, height=6, width=40)
    inputs["boxes"][0] = torch.tensor(
        [
            [3.0, 2, 3, 20],
            [5, 1, 14, 22],
            [30, 0, 61, 7],
            [-700, -50, 900, 80],
            [20, 3, 12, 9],
            [1e9, 0, 2e9, 5],
            [100, 4, 150, 4.6],
            [-9e8, -9e8, 9e8, 9e8],
        ]
    )
    check(kernels, inputs, overlap=1.0)


@st.composite
def stepped_inputs(draw: st.DrawFn) -> Inputs:
    """Channels of a few levels, some apart by a unit in the last place, over maps of odd sizes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype, layout = draw(st.sampled_from(TYPES)), draw(st.sampled_from(LAYOUTS))
    heuristic = draw(st.sampled_from(MERGES))
    stuff, things = draw(st.integers(1, 50)), draw(st.integers(1, 50))
    sizes = {"height": draw(st.integers(1, 7)), "width": draw(st.integers(1, 40))}
    inputs = make_inputs(0, counts=[5], rows=5, stuff=stuff, things=things, dtype=dtype, **sizes)
    shape = tuple(inputs["semantic"].shape)
    levels = torch.from_numpy(rng.integers(-2, 3, shape) * 2.0 ** rng.integers(-3, 4)).to(dtype)
    steps = torch.from_numpy(rng.integers(0, 3, shape))
    inputs["semantic"] = nudged(levels, steps).contiguous(memory_format=layout)
    return inputs | {"heuristic": heuristic}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(inputs=stepped_inputs())
def test_few_levels(kernels: str, inputs: Inputs) -> None:
    check(kernels, inputs)


@pytest.mark.parametrize("order", ["reverse", "shuffle"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_order_of_threads_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, layout: torch.memory_format, order: str
) -> None:
    monkeypatch.setenv("UPSNET_EMULATOR_ORDER", order)
    inputs = make_inputs(9, counts=[6], stuff=90, things=85, height=5, width=66)
    inputs["semantic"] = inputs["semantic"].contiguous(memory_format=layout)
    check("emulated", inputs)
