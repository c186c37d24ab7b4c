"""What a T4 (sm_75) runs where sm_80 has an instruction of its own: emulated, with the same bits."""

from __future__ import annotations

import pytest
import torch

import plugins_cuda
from plugins_cuda import library
from tests.plugins_cuda.inputs import LAYOUTS, TYPES, DeformCase, fusion_inputs

CASES = {
    "two chunks, ragged": DeformCase(channels=37, out_channels=5, size=(3, 17), masked=True),
    "the wide tile": DeformCase(channels=16, out_channels=130, size=(3, 4), kernel=(1, 2)),
    "groups": DeformCase(channels=32, out_channels=6, groups=2, size=(4, 4)),
    "more taps than are sampled at once": DeformCase(channels=8, out_channels=8, size=(3, 4), kernel=(4, 3)),
}


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_emulated_deform_conv(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    for layout in LAYOUTS:
        tensors = case.tensors(dtype, layout)
        with library.emulation():
            expected = plugins_cuda.deform_conv(**tensors, **case.steps)
        with library.emulation("emulated_sm_75"):
            assert torch.equal(plugins_cuda.deform_conv(**tensors, **case.steps), expected)


@pytest.mark.parametrize("heuristic", [False, True])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_emulated_panoptic_fusion(dtype: torch.dtype, heuristic: bool) -> None:
    inputs = {**fusion_inputs(7, stuff=3, counts=[6, 5], height=5, width=40, dtype=dtype)}
    inputs |= {"num_stuff": 3, "stuff_area_limit": 20.0, "heuristic": heuristic}
    with library.emulation():
        expected = plugins_cuda.panoptic_fusion(**inputs)
    with library.emulation("emulated_sm_75"):
        found = plugins_cuda.panoptic_fusion(**inputs)
    assert len(expected[0].unique()) > 3
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_it_is_another_library() -> None:
    assert library.load("emulated_sm_75").path != library.load("emulated").path
