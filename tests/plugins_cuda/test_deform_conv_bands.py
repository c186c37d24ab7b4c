"""The CPU front converts features band by band, into a ring of the rows that a band samples: large maps, whatever the
offsets. float channels-last maps are read where they lie; all others must give the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import plugins_cuda

CHANNELS, HEIGHT, WIDTH = 512, 150, 34  # three bands of about 60 rows


def offsets(kind: str) -> Tensor:
    """[2, 2, HEIGHT, WIDTH], vertical and horizontal, of a 1 x 1 kernel; not the same for both images."""
    generator = torch.Generator().manual_seed(1)
    shift = torch.randn(2, 2, HEIGHT, WIDTH, generator=generator)
    rows = torch.arange(HEIGHT, dtype=torch.float32)[:, None]
    if kind == "upside down":
        shift[:, 0] += HEIGHT - 1 - 2 * rows
    elif kind == "ahead":
        shift[0, 0] += 40
    elif kind == "one far back":
        shift[0, 0, -1, 3], shift[0, 0, 5, 3] = 3 - HEIGHT, HEIGHT - 20
    elif kind == "nothing but one row":
        shift[:, 0] = torch.where(rows == 70, 30.25, 2.0 * HEIGHT)
    elif kind == "not finite":
        shift[:, :, ::2, ::3], shift[:, :, 1::7] = torch.inf, torch.nan
    return shift


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["near", "upside down", "ahead", "one far back", "nothing but one row", "not finite"])
def test_bands_on_a_cpu_are_what_the_whole_map_is(kind: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, CHANNELS, HEIGHT, WIDTH, generator=generator).to(dtype)
    weight = torch.randn(3, CHANNELS, 1, 1, generator=generator).to(dtype)
    shift = offsets(kind)
    whole = plugins_cuda.deform_conv(
        x.float().contiguous(memory_format=torch.channels_last), shift, weight.float(), padding=0
    )
    for layout in (torch.contiguous_format, torch.channels_last):
        banded = plugins_cuda.deform_conv(x.contiguous(memory_format=layout), shift, weight, padding=0)
        tolerance = 0.0 if dtype == torch.float32 else 0.1  # its samples are rounded to float16, then 512 are summed
        torch.testing.assert_close(banded.float(), whole.contiguous(), rtol=0, atol=tolerance)
