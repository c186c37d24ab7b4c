"""What an operator's declaration is made of. Every room has one, `<room>/schema.py`; every front is derived from it.

Only the standard library is needed here: CMake runs `generate.py` where PyTorch may be missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property


class Type(Enum):
    """Of a tensor's elements."""

    FLOAT32 = "float32"
    INT32 = "int32"
    INT64 = "int64"
    UINT8 = "uint8"
    AS_FLOAT32 = "floating point"  # the kernels get it as float32
    AS_SUMS = (
        "floating point, as the sums"  # as float32, or as float64 where the first tensor is: the kernels have both
    )
    FEATURES = "float32 or float16 or bfloat16"
    ANY_FEATURES = "floating point, features"  # other types than those three go through the definition
    LIKE_FIRST = "the type of the first tensor"


INT32_MAX = 2**31 - 1  # the kernels' integers
ELEMENTS = {Type.FLOAT32: "float", Type.INT32: "int32_t", Type.INT64: "int64_t", Type.UINT8: "uint8_t"}


@dataclass(frozen=True)
class Tensor:
    """An input or an output.

    shape: sizes with blanks between, as "B N 4". Equal letters are equal sizes in all inputs. An output may also name
    attributes and calculate, from left to right: "B 4*h S+N".
    optional: may be None. `node` is the ONNX node's name where the tensor is given; without one, a node gets zeros. Of
        an output: the input without which it has no elements.
    each: the names of a list's tensors; # in the shape is then the last letter of such a name.
    channels_last: may lie in memory so; tensors with this flag share one layout.
    trains: a gradient flows back to it.
    """

    name: str
    type: Type
    shape: str
    optional: bool | str = False
    node: str = ""
    each: Sequence[str] = ()
    channels_last: bool = False
    trains: bool = False

    @property
    def has_own_type(self) -> bool:
        """Whether the kernels must be told the type of its elements."""
        return self.type in (Type.FEATURES, Type.ANY_FEATURES)

    @property
    def element(self) -> str:
        """In C++."""
        return "float" if self.type is Type.AS_FLOAT32 else ELEMENTS.get(self.type, "void")

    @cached_property
    def shapes(self) -> list[list[str]]:
        """The words of the shape, of every tensor in it."""
        return [self.shape.replace("#", name[-1:]).split() for name in self.each or [""]]


@dataclass(frozen=True)
class Attribute:
    """A number. ONNX knows it as `node`; None as default: it must be given.

    count: 2 for a pair (vertical, horizontal), which may be given as one number. twice: the node lists it twice.
    least, most: its range; NaN is never in it. words: the node says words[value].
    size: nobody gives it, the inputs' sizes say it ("C/D"); a node states it nevertheless.
    gone: it exists only in the nodes of older files, where it must have its default.
    """

    name: str
    type: type[int] | type[float] | type[bool]
    default: float | None = None
    least: float | None = None
    most: float | None = None
    count: int = 1
    node: str = ""
    twice: bool = False
    words: Sequence[str] = ()
    size: str = ""
    gone: bool = False

    @property
    def node_name(self) -> str:
        return self.node or self.name


@dataclass(frozen=True)
class Field:
    """A member of the kernels' Params."""

    name: str
    kind: str  # in C++
    count: int = 1
    comment: str = ""


@dataclass(frozen=True)
class Schema:
    """One operator: its arguments in their public order, its outputs, and the sizes (name: letters) for the kernels.

    node: the ONNX node's name, unless an optional tensor that is given has another one; empty: for training alone.
    on_gpu: whether there are a CUDA launcher and, of a node, a TensorRT plugin (launch.cu, plugin.cpp). Where not, a
        GPU runs the definition, or the node's body. on_cpu: the same of a CPU front (cpu.cpp).
    float64: whether the kernels also compute in float64, for such features.
    """

    name: str
    node: str
    arguments: Sequence[Tensor | Attribute]
    outputs: Sequence[Tensor]
    sizes: Mapping[str, str]
    on_gpu: bool = True
    on_cpu: bool = True
    float64: bool = False

    @cached_property
    def tensors(self) -> list[Tensor]:
        return [argument for argument in self.arguments if isinstance(argument, Tensor)]

    @cached_property
    def attributes(self) -> list[Attribute]:
        return [argument for argument in self.arguments if isinstance(argument, Attribute)]

    @cached_property
    def given(self) -> list[Tensor | Attribute]:
        """What a caller gives."""
        return [a for a in self.arguments if isinstance(a, Tensor) or not (a.size or a.gone)]

    def fields(self) -> Iterator[Field]:
        """The members of Params, in order."""
        for tensor in [*self.tensors, *self.outputs]:
            const = "" if tensor in self.outputs else "const "
            comment = f"[{', '.join(tensor.shape.split())}]" + (", or null" if tensor.optional else "")
            yield Field(tensor.name, f"{const}{tensor.element}*", len(tensor.shapes), comment)
        for tensor in self.tensors:
            if tensor.has_own_type:
                yield Field(f"{tensor.name}_type", "DType")
                if tensor.channels_last:
                    yield Field(f"{tensor.name}_layout", "Layout")
        for name, letters in self.sizes.items():
            yield Field(name, "int32_t", len(self.of_each_level(letters)), letters)
        for attribute in self.attributes:
            if not attribute.gone:
                yield Field(attribute.name, "float" if attribute.type is float else "int32_t", attribute.count)

    def of_each_level(self, letters: str) -> list[str]:
        """A size of every tensor of the list: "H#" -> H2, H3, H4, H5; another one as it is."""
        each = [name[-1] for tensor in self.tensors for name in tensor.each]
        return [letters.replace("#", digit) for digit in each] if "#" in letters else [letters]


def value_of(expression: str, sizes: Mapping[str, int]) -> int:
    """A size, calculated from left to right: "S+N", "P/2/kh/kw". What is divided by 0 is 0."""
    if expression in sizes:
        return sizes[expression]
    first, *rest = re.split(r"([-+*/])", expression)
    value = int(first) if first.isdigit() else sizes[first]
    for sign, word in zip(rest[::2], rest[1::2], strict=True):
        other = int(word) if word.isdigit() else sizes[word]
        match sign:
            case "+":
                value += other
            case "-":
                value -= other
            case "*":
                value *= other
            case _:
                value = value // other if other else 0
    return value
