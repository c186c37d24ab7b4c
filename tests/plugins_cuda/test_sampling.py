"""The embedding-bag form of deform_conv: the same values and gradients as torchvision."""

from __future__ import annotations

import pytest
import torch

from plugins_cuda.deform_conv import gradient as deform_gradient
from plugins_cuda.deform_conv import reference as deform_reference
from plugins_cuda.pytorch import wants_gradient
from plugins_cuda.sampling import corners


def gradients(output: torch.Tensor, *inputs: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad((output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum(), inputs))


@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 1, 1), (2, 1, 1), (1, 2, 2), (2, 0, 1)])
def test_deform_conv(stride: int, padding: int, dilation: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).requires_grad_()

    height, width = ((side + 2 * padding - 2 * dilation - 1) // stride + 1 for side in (13, 17))
    tensors = draw(2, 4, 13, 17), draw(2, 18, height, width, scale=3.0), draw(5, 4, 3, 3), draw(5)
    found = deform_gradient.deform_conv(*tensors, [stride] * 2, [padding] * 2, [dilation] * 2, None)
    expected = deform_reference.deform_conv(*tensors, stride, padding, dilation)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, *tensors), gradients(expected, *tensors))


def test_corners_by_hand() -> None:
    y, x = torch.tensor([0.25, -0.5, 5.0]), torch.tensor([1.5, 0.0, 0.0])
    rows, weights = corners(y, x, 2, 3, first=1)
    assert rows.tolist() == [[2, 3, 5, 6], [0, 0, 1, 2], [0, 0, 0, 0]]
    assert weights[0].tolist() == [0.375, 0.375, 0.125, 0.125]
    assert weights[1].tolist() == [0, 0, 0.5, 0], "half of the point lies above the map"
    assert weights[2].tolist() == [0, 0, 0, 0]


def test_only_training_wants_a_gradient() -> None:
    x = torch.randn(1, 2, 8, 8)
    assert not wants_gradient(x)
    assert wants_gradient(x.clone().requires_grad_())
    with torch.no_grad():
        assert not wants_gradient(x.clone().requires_grad_())
