"""Deformable convolution's function: known answers, a slow loop, the ONNX bodies, gradients, refusals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import plugins_cuda
from plugins_cuda.deform_conv import reference
from tests.plugins_cuda.conftest import RunNode, export
from tests.plugins_cuda.inputs import DeformCase

pytestmark = pytest.mark.numeric

Geometry = tuple[int, int, int]  # stride, padding, dilation
GEOMETRIES = [(1, 1, 1), (2, 1, 1), (1, 2, 2)]


def case(stride: int, padding: int, dilation: int, spread: float = 2.0) -> tuple[Any, ...]:
    steps: dict[str, Any] = {"stride": (stride,) * 2, "padding": (padding,) * 2, "dilation": (dilation,) * 2}
    return tuple(DeformCase(2, 3, (7, 9), spread=spread, **steps).tensors().values())


def slow(x: np.ndarray, offset: np.ndarray, weight: np.ndarray, bias: np.ndarray, geometry: Geometry) -> np.ndarray:
    stride, padding, dilation = geometry
    batch, _, height, width = x.shape
    out = np.zeros((batch, len(weight), *offset.shape[2:]))
    for b, row, column in np.ndindex(batch, *offset.shape[2:]):
        for tap in range(9):
            y = row * stride - padding + tap // 3 * dilation + float(offset[b, 2 * tap, row, column])
            z = column * stride - padding + tap % 3 * dilation + float(offset[b, 2 * tap + 1, row, column])
            value = np.zeros(x.shape[1])
            for cy in (math.floor(y), math.floor(y) + 1):
                for cx in (math.floor(z), math.floor(z) + 1):
                    if 0 <= cy < height and 0 <= cx < width:
                        value += (1 - abs(y - cy)) * (1 - abs(z - cx)) * x[b, :, cy, cx]
            out[b, :, row, column] += weight[:, :, tap // 3, tap % 3] @ value
    return out + bias[:, None, None]


def run_body(
    run_node: RunNode, x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, geometry: Geometry
) -> np.ndarray:
    stride, padding, dilation = geometry
    inputs = {"x": x, "offset": offset, "weight": weight, "bias": bias}
    attributes = {"strides": [stride] * 2, "pads": [padding] * 4, "dilations": [dilation] * 2}
    return run_node("DeformConv2d", inputs, [torch.float32], **attributes)[0]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_equals_a_slow_loop_and_the_body(run_node: RunNode, geometry: Geometry) -> None:
    x, offset, weight, bias = case(*geometry)
    expected = slow(x.numpy(), offset.numpy(), weight.numpy(), bias.numpy(), geometry)
    np.testing.assert_allclose(reference.deform_conv(x, offset, weight, bias, *geometry).numpy(), expected, atol=1e-4)
    np.testing.assert_allclose(run_body(run_node, x, offset, weight, bias, geometry), expected, atol=1e-4)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_without_offsets_it_is_a_convolution(geometry: Geometry) -> None:
    x, offset, weight, bias = case(*geometry)
    plain = torch.nn.functional.conv2d(x, weight, bias, *geometry)
    torch.testing.assert_close(plugins_cuda.deform_conv(x, offset * 0, weight, bias, *geometry), plain)


def test_offsets_are_row_then_column() -> None:
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 3, 1] = 1
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, 1, 1] = 1  # the middle tap, number 4: offset channels 8 (dy) and 9 (dx)
    offset = torch.zeros(1, 18, 5, 5)
    offset[0, 8], offset[0, 9] = 1, -1
    out = plugins_cuda.deform_conv(x, offset, weight)
    assert out[0, 0].nonzero().tolist() == [[2, 2]]


def test_far_offsets_give_the_bias(run_node: RunNode) -> None:
    x, offset, weight, bias = case(1, 1, 1)
    expected = bias[None, :, None, None].expand(2, 4, 7, 9)
    far = offset.sign() * 1e4
    torch.testing.assert_close(plugins_cuda.deform_conv(x, far, weight, bias), expected)
    np.testing.assert_allclose(run_body(run_node, x, far, weight, bias, (1, 1, 1)), expected.numpy(), atol=1e-6)


def test_batch_invariance() -> None:
    x, offset, weight, bias = case(1, 1, 1)
    together = plugins_cuda.deform_conv(x, offset, weight, bias)
    torch.testing.assert_close(plugins_cuda.deform_conv(x[1:], offset[1:], weight, bias), together[1:])


def test_gradients() -> None:
    x, offset, weight, bias = (tensor.double().requires_grad_() for tensor in case(2, 1, 1, spread=0.3))

    def convolve(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return reference.deform_conv(x, offset, weight, bias, 2, 1, 1)

    assert torch.autograd.gradcheck(convolve, (x[:1, :, :4, :4], offset[:1, :, :2, :2], weight[:1], bias[:1]))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_training_and_inference_agree(masked: bool, groups: int) -> None:
    x, offset, weight, bias = case(1, 1, 1)
    x, weight = x.repeat(1, 2, 1, 1), weight.repeat(1, 2 // groups, 1, 1)
    offset = offset.repeat(1, groups, 1, 1)
    mask = torch.rand(2, 9 * groups, 7, 9) if masked else None
    inference = plugins_cuda.deform_conv(x, offset, weight, bias, mask=mask)
    weight.requires_grad_()
    training = plugins_cuda.deform_conv(x, offset, weight, bias, mask=mask)
    training.sum().backward()
    assert weight.grad is not None and weight.grad.abs().sum() > 0
    torch.testing.assert_close(training.detach(), inference, atol=1e-4, rtol=1e-4)


class Convolution(nn.Module):
    """Half-precision features with float32 offsets, as an exported network has them."""

    def __init__(self, dtype: torch.dtype, masked: bool) -> None:
        super().__init__()
        self.dtype, self.masked = dtype, masked
        self.weight = nn.Parameter(torch.randn(6, 2, 3, 2, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        weight, chosen = self.weight.to(self.dtype), mask if self.masked else None
        return plugins_cuda.deform_conv(
            x.to(self.dtype), offset.to(self.dtype), weight, None, (2, 1), (1, 0), (1, 2), chosen
        ).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_exported_node(dtype: torch.dtype, masked: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 9, 8, generator=generator)
    offset = torch.randn(2, 24, 5, 6, generator=generator).to(dtype).float()
    mask = torch.rand(2, 12, 5, 6, generator=generator)
    network = Convolution(dtype, masked).eval()
    batch = {0: torch.export.Dim("B")}
    model = export(network, (x, offset, mask), dynamic_shapes=(batch, batch, batch))
    (node,) = [node for node in model.graph.node if node.domain == "upsnet"]
    assert node.op_type == ("ModulatedDeformConv2d" if masked else "DeformConv2d")
    assert {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} == {
        "strides": [2, 1], "pads": [1, 0, 1, 0], "dilations": [1, 2], "group": 2, "offset_group": 2,
        "plugin_version": b"1", "plugin_namespace": b"",
    }  # fmt: skip
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    given = {value.name: {"x": x, "offset": offset, "mask": mask}[value.name].numpy() for value in session.get_inputs()}
    with torch.no_grad():
        expected = network(x, offset, mask)
    tolerance = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}[dtype]
    np.testing.assert_allclose(session.run(None, given)[0], expected.numpy(), atol=tolerance)


def test_refusals_name_the_tensor() -> None:
    x, offset, weight, bias = case(1, 1, 1)
    mask = torch.rand(2, 9, 7, 9)
    refused = [
        ("x must", dict(x=x[0])),
        ("x must", dict(x=x[:, :, :0])),
        ("x must", dict(padding=0, dilation=4)),
        ("weight must be torch.float32", dict(weight=weight.half())),
        ("weight must", dict(weight=weight[:, :2])),
        ("weight must", dict(weight=weight[:, :1])),  # three groups of four output channels
        ("bias must", dict(bias=bias[:3])),
        ("offset must", dict(offset=offset[:, :17])),
        ("offset must", dict(offset=torch.cat([offset, offset], 1))),  # two groups of three channels
        ("offset must", dict(offset=offset[:, :, :6])),
        ("offset must", dict(stride=2)),
        ("mask must", dict(mask=mask[:, :8])),
        ("mask must", dict(mask=mask[:1])),
        ("stride must", dict(stride=0)),
        ("dilation must", dict(dilation=(1, 1, 1))),
        ("stride must .* in 1..2147483647", dict(stride=(1, 2**31))),
        ("padding must .* in 0..2147483647", dict(padding=2**32 + 1)),
    ]
    for message, change in refused:
        with pytest.raises(ValueError, match=f"deform_conv: {message}"):
            plugins_cuda.deform_conv(**{"x": x, "offset": offset, "weight": weight, "bias": bias, **change})
