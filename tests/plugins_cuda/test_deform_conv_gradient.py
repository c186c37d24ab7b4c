"""The gradient of deformable convolution by its kernels: the CPU front, and the CUDA kernel between two products."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import deform_conv2d

import plugins_cuda
from plugins_cuda import library
from plugins_cuda.deform_conv.backward import reference as products
from plugins_cuda.deform_conv.columns import deform_conv_columns, reference
from tests.plugins_cuda.conftest import COMPILED, Front, front_fixture, prepared
from tests.plugins_cuda.inputs import ALL_TYPES, LAYOUTS, DeformCase, room_inputs
from tests.plugins_cuda.test_limits import INVALID, start
from training.model.deform import DeformConv

pytestmark = pytest.mark.numeric
front = front_fixture(COMPILED)
Tensors = dict[str, Any]


def signs(like: Tensor) -> Tensor:
    return torch.arange(like.numel(), device=like.device).remainder(5).sub(2).view(like.shape).to(like)


def gradients(call: Callable[..., Tensor], tensors: Tensors, **steps: Any) -> dict[str, Tensor]:
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}
    result = call(**leaves, **steps)
    return dict(zip(leaves, torch.autograd.grad(result, list(leaves.values()), signs(result)), strict=True))


def exact(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None = None, **steps: Any) -> Tensor:
    return deform_conv2d(x, offset, weight, bias, **steps, mask=mask)


def assert_gradients(case: DeformCase, tensors: Tensors) -> dict[str, Tensor]:
    """Those of torchvision in float64, from the same numbers."""
    found = gradients(plugins_cuda.deform_conv, tensors, **case.steps)
    wanted = gradients(exact, {name: tensor.double() for name, tensor in tensors.items()}, **case.steps)
    dtype = tensors["x"].dtype
    tolerance = 1e-5 if dtype.itemsize > 2 else 8 * torch.finfo(dtype).eps  # samples and their gradients are rounded
    for name, gradient in found.items():
        assert (gradient.dtype, gradient.shape) == (tensors[name].dtype, tensors[name].shape)
        assert gradient.stride() == tensors[name].stride() or 1 in gradient.shape
        scale = wanted[name].abs().max().clamp(min=1e-3)
        torch.testing.assert_close(gradient.double() / scale, wanted[name] / scale, atol=tolerance, rtol=0, msg=name)
    return found


CASES = {
    "wide": DeformCase(batch=2, channels=72, size=(7, 9), out_channels=13),  # chunks of 32, 32 and 8 channels
    "masked": DeformCase(channels=16, size=(11, 13), masked=True),  # a tile and some pixels of the next
    "groups": DeformCase(channels=48, groups=2, offset_groups=3, masked=True),  # segments of 8 channels
    "depthwise": DeformCase(channels=4, groups=4, offset_groups=2),
    "odd": DeformCase(channels=5, out_channels=3, kernel=(2, 3), stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
    "one": DeformCase(channels=1, out_channels=1, kernel=(1, 1), padding=(0, 0)),
    "small images": DeformCase(batch=3, channels=8, size=(2, 1), spread=0.7),
}


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", ALL_TYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_front_has_torchvisions_gradients(
    front: Front, name: str, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    assert_gradients(CASES[name], CASES[name].tensors(dtype, layout, front.device))


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
@pytest.mark.parametrize("emulated", [False, True], ids=["cpu", "emulated"])
def test_any_front_and_shape(emulated: bool, data: st.DataObject) -> None:
    groups, offset_groups = data.draw(st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 3)]))
    kernel, dilation = data.draw(pairs), data.draw(pairs)
    case = DeformCase(
        batch=data.draw(st.integers(1, 3)),
        channels=groups * offset_groups * data.draw(st.sampled_from([1, 3, 8, 17])),
        size=(data.draw(st.integers(7, 12)), data.draw(st.integers(7, 12))),
        out_channels=groups * data.draw(st.sampled_from([1, 3, 7])),
        kernel=kernel,
        stride=data.draw(pairs),
        padding=data.draw(pairs),
        dilation=dilation,
        groups=groups,
        offset_groups=offset_groups,
        masked=data.draw(st.booleans()),
        spread=data.draw(st.sampled_from([0.0, 0.4, 5.0])),  # 0: every sample on a pixel
    )
    with library.emulation() if emulated else nullcontext():
        assert_gradients(case, case.tensors(data.draw(st.sampled_from(ALL_TYPES)), data.draw(st.sampled_from(LAYOUTS))))


def test_front_on_borders_and_pixels(front: Front) -> None:
    """Where a coordinate is -1, 0, the last pixel, the one behind, or a hair beside them: as torchvision has it."""
    case = DeformCase(channels=8, size=(5, 6), kernel=(1, 1), padding=(0, 0))
    tensors = case.tensors(device=front.device)
    row, column = torch.meshgrid(torch.arange(5.0), torch.arange(6.0), indexing="ij")
    edges = torch.tensor([-1, -1 + 2**-20, -0.5, 0, 4 - 2**-20, 4, 4.5, 5 - 2**-19, 5, 6])
    tensors["offset"] = torch.stack(
        [edges[(row + column).long()] - row, edges[(row * 3 + column).long() % 10] - column]
    )
    tensors["offset"] = tensors["offset"][None].to(front.device)
    assert_gradients(case, tensors)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_front_gives_offsets_that_are_not_finite_no_gradient(front: Front, value: float) -> None:
    case = CASES["masked"]
    broken, far = case.tensors(device=front.device), case.tensors(device=front.device)
    for tensors, away in ((broken, value), (far, 1e6)):
        tensors["offset"][0, 1, 2, 3] = tensors["offset"][0, 4, 1, 1] = away
    found, wanted = (gradients(plugins_cuda.deform_conv, tensors, **case.steps) for tensors in (broken, far))
    assert not found["offset"][0, :2, 2, 3].any() and not found["offset"][0, 4:6, 1, 1].any()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], msg=name)


def test_front_keeps_features_that_are_not_finite_to_their_samples(front: Front) -> None:
    """A pixel that nothing samples may hold anything; a NaN from below stays where its pixel samples."""
    case = DeformCase(channels=8, size=(5, 9), kernel=(1, 1), padding=(0, 0))
    tensors = case.tensors(device=front.device)
    tensors["offset"].fill_(0.25)
    tensors["offset"][0, :, 4, :] = 100.0  # off the map
    clean = gradients(plugins_cuda.deform_conv, tensors, **case.steps)
    tensors["offset"][0, :, :, 7:] = clean["offset"].new_tensor(-3.0)  # and nothing samples the last column
    wanted = gradients(plugins_cuda.deform_conv, tensors, **case.steps)
    tensors["x"][..., 8] = math.inf
    found = gradients(plugins_cuda.deform_conv, tensors, **case.steps)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], msg=name)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
def test_cpu_threads_change_no_bit(dtype: torch.dtype, layout: torch.memory_format) -> None:
    """Several runs of images, chunks of channels and bands of pixels."""
    case = DeformCase(batch=7, channels=72, size=(30, 41), out_channels=9, masked=True)
    tensors = case.tensors(dtype, layout)
    seen = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        seen.append(gradients(plugins_cuda.deform_conv, tensors, **case.steps))
    for others in seen[1:]:
        assert all(torch.equal(others[name], seen[0][name]) for name in tensors)


def test_cpu_threads_change_no_bit_where_bands_are_cut() -> None:
    """Runs of two images on maps so large, and of so many channels, that more threads would have shorter bands."""
    random = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(8, channels, 64, 64, generator=random) for channels in (256, 8))
    offset, weight = torch.randn(8, 18, 64, 64, generator=random), torch.randn(8, 256, 3, 3, generator=random)
    seen = []
    for threads in (1, 8):
        torch.set_num_threads(threads)
        seen.append(torch.ops.upsnet.deform_conv_backward(x, offset, weight, None, grad, [1, 1], [1, 1], [1, 1]))
    assert all(map(torch.equal, *seen))


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("kind", ["expanded", "narrowed"])
def test_front_takes_gradients_that_lie_in_no_order(front: Front, kind: str, layout: torch.memory_format) -> None:
    case = DeformCase(batch=2, channels=8, size=(9, 7), out_channels=6)
    tensors = case.tensors(torch.float32, layout, front.device)

    def trained(call: Callable[..., Tensor], given: Tensors) -> list[Tensor]:
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in given.items()}
        result = call(**leaves, **case.steps)
        shape = (2, 6, 1, 1) if kind == "expanded" else (2, 12, *result.shape[2:])
        grad = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(result)
        grad = grad.expand(result.shape) if kind == "expanded" else grad[:, 3:9]
        return list(torch.autograd.grad(result, list(leaves.values()), grad))

    found = trained(plugins_cuda.deform_conv, tensors)
    expected = trained(exact, {name: tensor.double() for name, tensor in tensors.items()})
    for ours, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double() / wanted.abs().max(), wanted / wanted.abs().max(), atol=1e-5, rtol=0)


def columns_of(case: DeformCase, dtype: torch.dtype, layout: torch.memory_format, deterministic: bool) -> Tensors:
    tensors = case.tensors(dtype, layout)
    size = (case.batch, *tensors["offset"].shape[2:], case.kernel[0] * case.kernel[1], case.channels)
    grad = torch.randn(size, generator=torch.Generator().manual_seed(3)).to(dtype)
    given = {name: tensors.get(name) for name in ("x", "offset", "mask")}
    return {**given, "grad_columns": grad, "kernel_size": case.kernel, **case.steps, "deterministic": deterministic}


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_emulated_order_of_threads(
    dtype: torch.dtype, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deterministic: no bit depends on it. Else the gradient of the features alone does, and by its rounding."""
    case = DeformCase(batch=2, channels=40, size=(10, 19), masked=True, offset_groups=2)
    results: dict[bool, list[tuple[Tensor, ...]]] = {False: [], True: []}
    for order in ("forward", "reverse", "shuffle"):
        monkeypatch.setenv("UPSNET_EMULATOR_ORDER", order)
        with library.emulation():
            for deterministic, seen in results.items():
                seen.append(deform_conv_columns(**columns_of(case, dtype, layout, deterministic)))
    wanted = reference.deform_conv_columns(**columns_of(case, dtype, layout, True))
    tolerance = 1e-4 if dtype == torch.float32 else 1e-2
    for deterministic, seen in results.items():
        for index, tensors in enumerate(zip(*seen, strict=True)):
            torch.testing.assert_close(tensors[0], wanted[index], atol=tolerance, rtol=tolerance)
            if deterministic or index != 1:
                assert all(torch.equal(each, tensors[0]) for each in tensors)
            else:
                torch.testing.assert_close(tensors[1], tensors[0], atol=tolerance, rtol=tolerance)


def test_emulated_deterministic_mode_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(*arguments: Any) -> Any:
        seen.append(arguments[-1])
        return deform_conv_columns(*arguments)

    monkeypatch.setattr(products, "deform_conv_columns", spy)
    with library.emulation():
        for wanted in (True, False):
            monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda wanted=wanted: wanted)
            gradients(plugins_cuda.deform_conv, CASES["one"].tensors(), **CASES["one"].steps)
    assert seen == [True, False]


def test_a_few_images_at_a_time_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    case = DeformCase(batch=5, channels=8, masked=True)
    monkeypatch.setattr(products, "SAMPLES", 2 * 35 * 9 * 8)
    with library.emulation():
        assert_gradients(case, case.tensors())


def test_front_takes_an_empty_batch(front: Front) -> None:
    tensors = {name: value[:0] if name in ("x", "offset") else value for name, value in CASES["one"].tensors().items()}
    tensors = {name: value.to(front.device) for name, value in tensors.items()}
    found = gradients(plugins_cuda.deform_conv, tensors, **CASES["one"].steps)
    assert [found[name].shape for name in tensors] == [tensor.shape for tensor in tensors.values()]
    assert not found["weight"].any() and not found["bias"].any()


def test_front_is_the_derivative(front: Front) -> None:
    case = DeformCase(size=(4, 3), channels=4, out_channels=2, groups=2, masked=True, spread=0.3)
    tensors = {name: tensor.double().requires_grad_() for name, tensor in case.tensors(device=front.device).items()}
    assert torch.autograd.gradcheck(
        lambda *given: plugins_cuda.deform_conv(**dict(zip(tensors, given, strict=True)), **case.steps),
        list(tensors.values()),
        fast_mode=True,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_cpu_trains_under_autocast(dtype: torch.dtype) -> None:
    """As the network calls it: features in 16 bits, parameters in float32."""
    torch.manual_seed(0)
    layer, x = DeformConv(8, 6), torch.randn(2, 8, 9, 7).contiguous(memory_format=torch.channels_last)
    torch.nn.init.constant_(
        layer.get_parameter("conv_offset.bias"), 0.25
    )  # in any type; the slope jumps where a sample meets a pixel
    found = []
    for narrow in (False, True):
        layer.zero_grad()
        with torch.autocast("cpu", dtype, enabled=narrow):
            out = layer(x.to(dtype) if narrow else x)
            (out.float() * signs(out)).sum().backward()
        assert out.dtype == (dtype if narrow else torch.float32)
        found.append(
            {
                name: torch.clone(parameter.grad)
                for name, parameter in layer.named_parameters()
                if parameter.grad is not None
            }
        )
    assert len(found[1]) == 4
    for name, gradient in found[1].items():
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, found[0][name], rtol=0.1, atol=0.05 * float(found[0][name].abs().max()))


def test_front_compiles_with_its_gradient(front: Front) -> None:
    case = CASES["masked"]
    tensors = case.tensors(device=front.device)
    compiled = torch.compile(plugins_cuda.deform_conv, fullgraph=True, backend="aot_eager")
    found = gradients(compiled, tensors, **case.steps)
    for name, gradient in gradients(plugins_cuda.deform_conv, tensors, **case.steps).items():
        torch.testing.assert_close(gradient, found[name], msg=name)


def test_a_second_derivative_is_refused() -> None:
    tensors = {name: tensor.requires_grad_() for name, tensor in CASES["one"].tensors().items()}
    out = plugins_cuda.deform_conv(**tensors, **CASES["one"].steps)
    (first,) = torch.autograd.grad(out.square().sum(), tensors["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="deform_conv_backward: a gradient has no gradient here"):
        first.sum().backward()


@pytest.mark.parametrize(
    ("name", "room", "wrong"),
    [
        *(("cpu", "deform_conv/backward", {member: 3}) for member in ("group", "offset_group")),
        *(("cpu", "deform_conv/backward", {member: -1}) for member in ("batch", "channels", "out_height", "kernel_w")),
        *(("emulated", "deform_conv/columns", {member: 3}) for member in ("taps", "offset_group")),
        *(
            ("emulated", "deform_conv/columns", {member: -1})
            for member in ("batch", "channels", "out_height", "height")
        ),
        ("emulated", "deform_conv/columns", {"out_height": 2**16, "out_width": 2**15}),
    ],
    ids=str,
)
def test_what_no_kernel_can_hold_is_refused(name: str, room: str, wrong: dict[str, int]) -> None:
    params, _outputs, _held = prepared(room, room_inputs(room))
    for member, value in wrong.items():
        setattr(params, member, value)
    assert start(name, room, params) == INVALID
