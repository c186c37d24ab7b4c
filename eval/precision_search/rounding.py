"""A network in PyTorch whose modules are rounded to narrower types, as the exported graph has them.

Every convolution and matrix product inside a module reads rounded features and weights and gives rounded features.
What the graph gives eight bits (export/features.py) is rounded to them, symmetrically and with the ranges of a
calibration; the rest of such a module to the floating-point type around. Sums are float32, as in the engine's kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from export.eight_bits import LARGEST, TINY, EightBits
from export.modules import Modules
from export.precision import DTYPES, float_type
from training.model.deform import DeformConv
from training.model.upsnet import UPSNet
from upsnet.errors import InputError
from upsnet.manifest import EIGHT_BITS, ModuleType, Recipe

LAYERS = (torch.conv2d, torch.conv_transpose2d, F.linear)  # those of export/features.py
PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__)


class Call(NamedTuple):
    """One layer in one forward pass."""

    number: int | None  # of LAYERS, as the graph's nodes are counted; None for a product and a deformable convolution
    module: str | None  # one of `modules_of`; None for what is in none
    inputs: Tensor
    weight: Tensor
    output: Tensor


def to_float(values: Tensor, kind: ModuleType) -> Tensor:
    """The nearest values of a floating-point type."""
    return values if kind == "fp32" else values.to(DTYPES[kind]).to(values.dtype)


def to_eight_bits(values: Tensor, largest: Tensor | float, kind: EightBits) -> Tensor:
    """The nearest of the values that eight bits have for magnitudes up to `largest`, half to even; others are clipped.

    largest: a number, or a tensor that broadcasts against `values`.
    """
    step = torch.as_tensor(largest, dtype=values.dtype).clamp(min=TINY) / LARGEST[kind]
    scaled = (values / step).clamp(-LARGEST[kind], LARGEST[kind])
    whole = scaled.round() if kind == "int8" else scaled.to(torch.float8_e4m3fn).to(values.dtype)
    return whole * step


class Rounded:
    """A float32 network that `prepare` made, and the layers in it that can have eight bits.

    Of each layer of LAYERS in the order of the graph, eligible: whether it may; names: its module; largest: the largest
    magnitude that it reads, from a calibration (`calibrate`).
    """

    def __init__(self, model: UPSNet, modules: Modules, eligible: Sequence[bool], names: Sequence[str | None]) -> None:
        self.model, self.modules, self.eligible, self.names = model, modules, list(eligible), list(names)
        self.largest = [0.0] * len(self.eligible)
        self._weights: dict[tuple[object, ...], Tensor] = {}

    @contextmanager
    def observe(self) -> Iterator[list[Call]]:
        """The list gets every layer that runs inside, in float32."""
        calls: list[Call] = []
        with self._run(Recipe(), calls.append):
            yield calls

    @contextmanager
    def calibrate(self) -> Iterator[None]:
        """Inside, photos that are shown to the network widen the ranges."""

        def widen(call: Call) -> None:
            if call.number is not None:
                self.largest[call.number] = max(self.largest[call.number], float(call.inputs.abs().max()))

        with self._run(Recipe(), widen):
            yield

    @contextmanager
    def computing(self, recipe: Recipe) -> Iterator[None]:
        """Inside, the network computes in the recipe's types."""
        with self._run(recipe, None):
            yield

    @contextmanager
    def _run(self, recipe: Recipe, watch: Callable[[Call], None] | None) -> Iterator[None]:
        mode = _Mode(self, recipe, watch)
        with ExitStack() as stack:
            for name, paths in self.modules.items():
                for path in paths:
                    module = self.model.get_submodule(path)
                    stack.callback(module.register_forward_pre_hook(mode.enter(name)).remove)
                    stack.callback(module.register_forward_hook(mode.leave).remove)
            for module in self.model.modules():
                if isinstance(module, DeformConv):
                    stack.callback(module.register_forward_pre_hook(mode.before_deform).remove)
                    stack.callback(module.register_forward_hook(mode.after_deform).remove)
            stack.callback(self.model.register_forward_pre_hook(mode.start).remove)
            stack.callback(self.model.register_forward_hook(mode.end).remove)
            stack.enter_context(mode)
            yield

    def weight(self, number: int | None, weight: Tensor, kind: ModuleType, axis: int) -> Tensor:
        """Rounded, channel by channel where to eight bits. Weights are the same in every call: kept."""
        key = (number, kind) if number is not None else (weight.data_ptr(), kind)
        if key not in self._weights:
            if kind in EIGHT_BITS:
                others = [each for each in range(weight.ndim) if each != axis]
                rounded = to_eight_bits(weight, weight.abs().amax(others, keepdim=True), cast(EightBits, kind))
            else:
                rounded = to_float(weight, kind)
            self._weights[key] = rounded.detach().clone()
        return self._weights[key]


class _Mode(TorchFunctionMode):
    """What happens around each layer."""

    def __init__(self, network: Rounded, recipe: Recipe, watch: Callable[[Call], None] | None) -> None:
        super().__init__()
        self._network, self._recipe, self._watch = network, recipe, watch
        self._inside: list[str] = []
        self._number = 0
        self._deformed: list[Tensor] = []

    def start(self, *_: object) -> None:
        self._number = 0

    def end(self, *_: object) -> None:
        expected = len(self._network.eligible)
        if self._number != expected:
            raise _another(f"{self._number} layers ran, and its exported graph has {expected}")

    def enter(self, name: str) -> Callable[..., None]:
        return lambda *_: self._inside.append(name)

    def leave(self, *_: object) -> None:
        self._inside.pop()

    def before_deform(self, module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        """The weights are the module's own: replaced while it runs."""
        assert isinstance(module, DeformConv)
        self._deformed.append(module.weight.data)
        kind = self._float()
        module.weight.data = self._network.weight(None, module.weight.data, kind, 0)
        return (to_float(inputs[0], kind),)

    def after_deform(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        assert isinstance(module, DeformConv)
        module.weight.data = self._deformed.pop()
        if self._watch:
            self._watch(Call(None, self._module, inputs[0], module.weight, output))
        return to_float(output, self._float())

    @property
    def _module(self) -> str | None:
        return self._inside[-1] if self._inside else None

    def _float(self) -> ModuleType:
        return "fp32" if self._module is None else float_type(self._recipe, self._module)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in LAYERS and func not in PRODUCTS:
            return func(*args, **kwargs)
        number = None
        if func in LAYERS and not (func is F.linear and args[0].ndim != 2):  # which is a MatMul in the graph
            number, self._number = self._number, self._number + 1
            if self._network.names[number : number + 1] != [self._module]:
                raise _another(f"layer {number} is of {self._module}, and not so in its exported graph")
        inputs, weight, *rest = args
        if self._watch:
            output = func(*args, **kwargs)
            self._watch(Call(number, self._module, inputs, weight, output))
            return output
        around = self._float()
        if number is None:
            return to_float(func(to_float(inputs, around), to_float(weight, around), *rest, **kwargs), around)
        kind = "fp32" if self._module is None else self._recipe.type_of(self._module)
        eight = kind in EIGHT_BITS and self._network.eligible[number]
        inputs = to_float(inputs, around)
        if eight:
            inputs = to_eight_bits(inputs, self._network.largest[number], cast(EightBits, kind))
        axis = 1 if func is torch.conv_transpose2d else 0
        weight = self._network.weight(number, weight, kind if eight else around, axis)
        return to_float(func(inputs, weight, *rest, **kwargs), around)


def _another(why: str) -> InputError:
    return InputError(
        f"this network cannot be rounded layer by layer in PyTorch ({why}); on a machine with a GPU and TensorRT its "
        "engines are measured"
    )
