"""deform_conv's gradient on every front: torchvision's, the same sums each time, and nothing beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import deform_conv2d

import plugins_cuda
from plugins_cuda import library
from tests.plugins_cuda.conftest import COMPILED, Front, front_fixture, params_class
from tests.plugins_cuda.inputs import ALL_TYPES, LAYOUTS, DeformCase

pytestmark = pytest.mark.numeric

front = front_fixture([*COMPILED, "reference"])

CASES = {
    "whole vectors": DeformCase(batch=2, channels=16, size=(10, 19), out_channels=6),
    "odd channels": DeformCase(channels=7, size=(6, 7), masked=True),
    "more channels than a warp": DeformCase(channels=264, size=(4, 9), out_channels=3, masked=True),
    "groups": DeformCase(batch=2, channels=8, size=(6, 7), groups=2, offset_groups=4, masked=True),
    "steps": DeformCase(channels=4, size=(9, 17), kernel=(3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
    "far": DeformCase(channels=8, size=(9, 9), spread=9.0),
    "on the pixels": DeformCase(channels=8, size=(9, 9), spread=0.0),
    "one pixel": DeformCase(channels=2, size=(1, 1), out_channels=1),
}


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def gradients(call: Callable[..., Tensor], tensors: Mapping[str, Tensor], case: DeformCase) -> dict[str, Tensor]:
    """The result, and the gradients of its weighted sum."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    result = call(**leaves, **case.steps)
    weights = torch.linspace(-1, 1, result.numel(), dtype=torch.float64).reshape(result.shape).to(result)
    found = torch.autograd.grad((result * weights).sum(), list(leaves.values()))
    return {"result": result.detach(), **dict(zip(leaves, found, strict=True))}


def exact(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None = None, **steps: Any) -> Tensor:
    return deform_conv2d(x, offset, weight, bias, **steps, mask=mask)


@pytest.mark.parametrize("ordered", [False, True], ids=["fast", "deterministic"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [*ALL_TYPES, torch.float64], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_it_is_torchvisions(
    front: Front, name: str, dtype: torch.dtype, layout: torch.memory_format, ordered: bool
) -> None:
    """In float64, from the same numbers; in the type and memory format of each tensor."""
    case = CASES[name]
    tensors = case.tensors(dtype, layout, front.device)
    if dtype == torch.float64:
        tensors = {key: tensor.double() for key, tensor in tensors.items()}
    expected = gradients(exact, {key: tensor.cpu().double() for key, tensor in tensors.items()}, case)
    if ordered:
        with deterministic():
            found = gradients(plugins_cuda.deform_conv, tensors, case)
    else:
        found = gradients(plugins_cuda.deform_conv, tensors, case)
    # 16-bit types: the samples and their gradients are rounded between the products, and so is the result
    tolerance = 8 * torch.finfo(dtype).eps if dtype.itemsize == 2 else 2e-5 if dtype == torch.float32 else 1e-12
    for key, wanted in expected.items():
        assert found[key].dtype == (dtype if key == "result" else tensors[key].dtype)
        scale = wanted.abs().max().clamp(min=1e-3)
        found_here = found[key].cpu().double()
        torch.testing.assert_close(found_here / scale, wanted / scale, atol=tolerance, rtol=0, msg=f"{key}")
    assert found["x"].is_contiguous(memory_format=layout)


@pytest.mark.parametrize("name", ["groups", "steps", "odd channels"])
def test_it_is_the_derivative(front: Front, name: str) -> None:
    case = replace(CASES[name], batch=1, size=(4, 5), spread=0.3)
    tensors = {key: tensor.double() for key, tensor in case.tensors(device=front.device).items()}
    assert torch.autograd.gradcheck(
        lambda *given: plugins_cuda.deform_conv(**dict(zip(tensors, given, strict=True)), **case.steps),
        [tensor.requires_grad_() for tensor in tensors.values()],
        fast_mode=True,
    )


@pytest.mark.parametrize("dtype", ALL_TYPES, ids=str)
@pytest.mark.parametrize("name", ["whole vectors", "groups", "odd channels"])
def test_cpu_gradients_are_the_same_for_any_number_of_threads(name: str, dtype: torch.dtype) -> None:
    case = replace(CASES[name], batch=5)
    threads, tensors = torch.get_num_threads(), case.tensors(dtype)
    try:
        found = []
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            found.append(torch.ops.upsnet.deform_conv_backward(*backward_arguments(tensors, case)))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def backward_arguments(tensors: Mapping[str, Tensor], case: DeformCase) -> tuple[object, ...]:
    grad = torch.ones_like(exact(**{key: each.double() for key, each in tensors.items()}, **case.steps))
    grad = grad.cumsum(-1).to(tensors["x"])
    mask = tensors.get("mask")
    return tensors["x"], tensors["offset"], tensors["weight"], mask, grad, *map(list, case.steps.values())


@pytest.mark.parametrize("order", ["reverse", "shuffle"])
@pytest.mark.parametrize("dtype", ALL_TYPES, ids=str)
def test_emulated_sums_have_one_order_where_it_is_asked_for(
    dtype: torch.dtype, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES["whole vectors"]
    tensors = case.tensors(dtype)
    with library.emulation(), deterministic():
        found = gradients(plugins_cuda.deform_conv, tensors, case)
        monkeypatch.setenv("UPSNET_EMULATOR_ORDER", order)
        again = gradients(plugins_cuda.deform_conv, tensors, case)
    assert all(torch.equal(found[key], again[key]) for key in found)


@pytest.mark.parametrize("ordered", [False, True], ids=["fast", "deterministic"])
def test_not_finite_offsets_have_no_gradient(front: Front, ordered: bool) -> None:
    case = CASES["odd channels"]
    tensors = case.tensors(device=front.device)
    tensors["offset"][0, 3, 2, 2], tensors["offset"][0, 4, 1, 1] = float("nan"), float("inf")
    tensors["x"][0, :, 0, 0] = float("inf")  # what lies off the map must not be pixel 0 times 0
    tensors["offset"][0, 6:8] = 1e6
    if ordered:
        with deterministic():
            found = gradients(plugins_cuda.deform_conv, tensors, case)
    else:
        found = gradients(plugins_cuda.deform_conv, tensors, case)
    assert not found["offset"][0, 2:4, 2, 2].any() and not found["offset"][0, 4:6, 1, 1].any()
    assert not found["offset"][0, 6:8].any() and found["x"].isfinite().all()


def test_an_empty_batch_has_gradients_of_zeros(front: Front) -> None:
    case = CASES["odd channels"]
    tensors = {key: each[:0] if each.ndim == 4 and key != "weight" else each for key, each in case.tensors().items()}
    tensors = {key: each.to(front.device) for key, each in tensors.items()}
    found = gradients(plugins_cuda.deform_conv, tensors, case)
    assert all(found[key].shape == tensors[key].shape and not found[key].any() for key in tensors)


def test_a_gradient_has_none_of_its_own(front: Front) -> None:
    case = CASES["steps"]
    tensors = {key: each.requires_grad_() for key, each in case.tensors(device=front.device).items()}
    result = plugins_cuda.deform_conv(**tensors, **case.steps)
    (first,) = torch.autograd.grad(result.sum(), [tensors["x"]], create_graph=True)
    with pytest.raises(RuntimeError, match=r"^upsnet::deform_conv_backward: a gradient has no gradient here; .* once$"):
        first.sum().backward()


def test_cpu_gradients_of_a_compiled_function_are_the_same() -> None:
    case = CASES["groups"]
    tensors = case.tensors()
    compiled = torch.compile(partial(plugins_cuda.deform_conv), backend="aot_eager", fullgraph=True, dynamic=True)
    found, expected = (gradients(call, tensors, case) for call in (compiled, plugins_cuda.deform_conv))
    for key, wanted in expected.items():
        torch.testing.assert_close(found[key], wanted)


@pytest.mark.parametrize("deterministic", [0, 1])
@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("kind", [0, 1, 2, 3])
def test_emulated_workspace_never_shrinks_when_a_size_grows(kind: int, layout: int, deterministic: int) -> None:
    emulated = library.load("emulated")
    sizes = {"batch": 2, "channels": 8, "height": 9, "width": 11, "out_height": 9, "out_width": 11, "taps": 9}
    numbers = {"offset_group": 1, "x_type": kind, "x_layout": layout, "deterministic": deterministic}

    def needed(sizes: Mapping[str, int]) -> int:
        params = params_class("deform_conv/columns")(**sizes, **numbers)
        for name, pair in (("kernel_size", 3), ("stride", 1), ("padding", 1), ("dilation", 1)):
            getattr(params, name)[:] = [pair, pair]
        return emulated.workspace_size("deform_conv_columns", params)

    for name, size in sizes.items():
        grown = [needed(sizes | {name: value}) for value in range(size + 20)]
        assert grown == sorted(grown), name
